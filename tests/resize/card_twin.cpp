// The kernels of resize/cnclip_card/resize.cu for the processor: block after block, and in it thread after thread.
struct dim {
    unsigned x, y, z;
};
static dim gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __device__

#include KERNELS

template <typename Kernel>
static void
launch(const unsigned *blocks, unsigned threads, Kernel kernel) {
    gridDim = {blocks[0], blocks[1], blocks[2]};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++) {
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++) {
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) {
                    kernel();
                }
            }
        }
    }
}

extern "C" void
launch_weigh(const unsigned *blocks, unsigned threads, const picture *pictures, int side) {
    launch(blocks, threads, [=] { weigh(pictures, side); });
}

extern "C" void
launch_shrink(const unsigned *blocks, unsigned threads, const picture *pictures, int side, int second) {
    launch(blocks, threads, [=] { shrink(pictures, side, second); });
}
