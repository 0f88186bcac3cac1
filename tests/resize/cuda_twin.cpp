// A libcuda.so.1 of as many functions as cuda-core asks for here: a GPU of which the memory is the host's, and the kernels are
// those of card_twin.cpp. CUDA_TWIN_GPUS, CUDA_TWIN_VERSION and CUDA_TWIN_CAPABILITY say how many there are, and
// how old driver and GPU are.
#include "card_twin.cpp"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <map>
#include <set>
#include <vector>

typedef unsigned long long address;
struct config {
    unsigned grid[3], block[3], shared;
    void *stream;
    void *attributes;
    unsigned count;
};

static const int SUCCESS = 0, INVALID = 1, FULL = 2, NO_DEVICE = 100, NOT_FOUND = 500;
static const size_t TOTAL = (size_t)1 << 34;
static const char *const NAMES[] = {"weigh", "shrink"};
static char stand[64]; // what contexts, streams and pools point to
static std::map<address, size_t> allocated;
static std::set<address> plain; // those of them that are of no pool
static int fail_after = -1;
struct copy {
    address to, from;
    size_t size;
};
static std::vector<copy> under_way;

static int
setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

extern "C" {

// For tests: how many allocations go well from now on, before one fails; and how many bytes nobody has given back.
void twin_fail_after(int count) { fail_after = count; }
size_t
twin_allocated() {
    size_t sum = 0;
    for (auto &one : allocated) {
        sum += one.second;
    }
    return sum;
}

#define CALL(name, ...) int twin_##name(__VA_ARGS__)

CALL(cuInit, unsigned) { return setting("CUDA_TWIN_GPUS", 1) ? SUCCESS : NO_DEVICE; }
CALL(cuDriverGetVersion, int *version) { *version = setting("CUDA_TWIN_VERSION", 13000); return SUCCESS; }
CALL(cuDeviceGetCount, int *count) { *count = setting("CUDA_TWIN_GPUS", 1); return SUCCESS; }
CALL(cuDeviceGet, int *device, int number) {
    *device = number;
    return number < setting("CUDA_TWIN_GPUS", 1) ? SUCCESS : 101;
}
CALL(cuDeviceGetAttribute, int *value, int which, int) {
    // Compute capability 9.0 or another; unified addressing and memory pools are there; of all else 1.
    const int capability = setting("CUDA_TWIN_CAPABILITY", 90);
    *value = which == 75 ? capability / 10 : which == 76 ? capability % 10 : 1;
    return SUCCESS;
}
CALL(cuDeviceTotalMem, size_t *size, int) { *size = TOTAL; return SUCCESS; }
CALL(cuDevicePrimaryCtxRetain, void **context, int) { *context = stand; return SUCCESS; }
CALL(cuDevicePrimaryCtxRelease, int) { return SUCCESS; }
CALL(cuCtxSetCurrent, void *) { return SUCCESS; }
CALL(cuCtxGetCurrent, void **context) { *context = stand; return SUCCESS; }
CALL(cuCtxGetDevice, int *device) { *device = 0; return SUCCESS; }
CALL(cuCtxPushCurrent, void *) { return SUCCESS; }
CALL(cuCtxPopCurrent, void **context) { *context = stand; return SUCCESS; }
CALL(cuCtxGetStreamPriorityRange, int *least, int *most) { *least = *most = 0; return SUCCESS; }
CALL(cuStreamCreateWithPriority, void **stream, unsigned, int) { *stream = stand + 8; return SUCCESS; }
CALL(cuStreamCreate, void **stream, unsigned) { *stream = stand + 8; return SUCCESS; }
CALL(cuStreamDestroy, void *) { return SUCCESS; }
CALL(cuStreamSynchronize, void *stream) {
    if (!stream) {
        for (auto &one : under_way) {
            memcpy((void *)one.to, (void *)one.from, one.size);
        }
        under_way.clear();
    }
    return SUCCESS;
}
CALL(cuStreamIsCapturing, void *, int *status) { *status = 0; return SUCCESS; }
CALL(cuStreamGetCtx, void *, void **context) { *context = stand; return SUCCESS; }
CALL(cuDeviceGetDefaultMemPool, void **pool, int) { *pool = stand + 16; return SUCCESS; }
CALL(cuDeviceGetMemPool, void **pool, int) { *pool = stand + 16; return SUCCESS; }
CALL(cuMemPoolGetAttribute, void *, int, void *value) { memset(value, 0, 8); return SUCCESS; }
CALL(cuMemPoolSetAttribute, void *, int, void *) { return SUCCESS; }

CALL(cuMemAllocFromPoolAsync, address *pointer, size_t size, void *, void *) {
    if (fail_after == 0) {
        fail_after = -1;
        return FULL;
    }
    fail_after -= fail_after > 0;
    void *memory = size ? malloc(size) : nullptr;
    if (!memory) {
        return size ? FULL : INVALID;
    }
    memset(memory, 0xA5, size);
    *pointer = (address)memory;
    allocated[*pointer] = size;
    return SUCCESS;
}
CALL(cuMemAllocAsync, address *pointer, size_t size, void *stream) {
    return twin_cuMemAllocFromPoolAsync(pointer, size, stand, stream);
}
CALL(cuMemAlloc, address *pointer, size_t size) {
    const int error = twin_cuMemAllocFromPoolAsync(pointer, size, nullptr, nullptr);
    if (!error) {
        plain.insert(*pointer);
    }
    return error;
}
static int
give_back(address pointer, bool was_plain) {
    if (plain.erase(pointer) != was_plain || !allocated.erase(pointer)) {
        return INVALID;
    }
    free((void *)pointer);
    return SUCCESS;
}
CALL(cuMemFree, address pointer) { return give_back(pointer, true); }
CALL(cuMemFreeAsync, address pointer, void *) { return give_back(pointer, false); }
// For tests: whether memory may be shared with another process by `cudaIpcGetMemHandle`.
bool twin_is_plain(address pointer) { return plain.count(pointer); }

// Whether so many bytes lie within one allocation.
static bool
is_ours(address pointer, size_t size) {
    auto after = allocated.upper_bound(pointer);
    if (after == allocated.begin()) {
        return false;
    }
    --after;
    return pointer + size <= after->first + after->second;
}
CALL(cuPointerGetAttributes, unsigned count, const int *which, void **values, address pointer) {
    for (unsigned i = 0; i < count; i++) {
        // The type of memory (2: a device's), whether it is managed, the device's number.
        *(int *)values[i] = which[i] == 2 && is_ours(pointer, 1) ? 2 : 0;
    }
    return SUCCESS;
}
CALL(cuMemcpyHtoDAsync, address to, const void *from, size_t size, void *) {
    if (!is_ours(to, size)) {
        return INVALID;
    }
    memcpy((void *)to, from, size);
    return SUCCESS;
}
CALL(cuMemcpyDtoHAsync, void *to, address from, size_t size, void *) {
    if (!is_ours(from, size)) {
        return INVALID;
    }
    memcpy(to, (void *)from, size);
    return SUCCESS;
}
// Nobody waits for copies within the card but who waits for the default stream.
CALL(cuMemcpyDtoD, address to, address from, size_t size) {
    if (!is_ours(to, size) || !is_ours(from, size)) {
        return INVALID;
    }
    under_way.push_back({to, from, size});
    return SUCCESS;
}

CALL(cuLibraryLoadData, void **library, const void *code, void *, void *, unsigned, void *, void *, unsigned) {
    *library = stand + 24;
    return memcmp(code, "\x7f" "ELF", 4) ? 200 : SUCCESS; // a cubin is an ELF file
}
CALL(cuLibraryUnload, void *) { return SUCCESS; }
CALL(cuLibraryGetKernel, void **kernel, void *, const char *name) {
    for (auto &known : NAMES) {
        if (!strcmp(name, known)) {
            *kernel = (void *)&known;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}
CALL(cuKernelGetFunction, void **function, void *kernel) { *function = kernel; return SUCCESS; }
CALL(cuLaunchKernelEx, const config *asked, void *function, void **arguments, void **) {
    const picture *pictures = *(const picture **)arguments[0];
    if (!is_ours((address)pictures, sizeof *pictures) || asked->block[1] * asked->block[2] != 1) {
        return INVALID;
    }
    const int side = *(int *)arguments[1];
    if (function == (void *)&NAMES[0]) {
        launch_weigh(asked->grid, asked->block[0], pictures, side);
    } else {
        launch_shrink(asked->grid, asked->block[0], pictures, side, *(int *)arguments[2]);
    }
    return SUCCESS;
}
CALL(cuLaunchKernel, void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
     unsigned shared, void *stream, void **arguments, void **extra) {
    const config asked = {{gx, gy, gz}, {bx, by, bz}, shared, stream, nullptr, 0};
    return twin_cuLaunchKernelEx(&asked, function, arguments, extra);
}

CALL(cuGetErrorName, int error, const char **name) {
    *name = error == FULL        ? "CUDA_ERROR_OUT_OF_MEMORY"
            : error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
            : error == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND"
                                 : "CUDA_ERROR_INVALID_VALUE";
    return SUCCESS;
}
CALL(cuGetErrorString, int error, const char **text) { return twin_cuGetErrorName(error, text); }

int
cuGetProcAddress_v2(const char *name, void **function, int, unsigned long long, int *status) {
    char ours[128];
    snprintf(ours, sizeof ours, "twin_%s", name);
    *function = dlsym(RTLD_DEFAULT, ours);
    if (status) {
        *status = *function ? 0 : 1;
    }
    return SUCCESS;
}
int
cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
}
