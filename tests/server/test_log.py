from __future__ import annotations

from cnclip_server._log import failure_reason, last_line, tail, unbound_service

HEAD = 'I1124 00:08:59.373016 21286 model_lifecycle.cc:472] "loading: m:1"\n'
LOAD_ERROR = (
    "E1124 00:09:01.603358 21286 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: "
    'TritonModelException: my \'bad\' \\"thing\\"\\nsecond line\\n\\nAt:\\n  /x/model.py(4): initialize\\n"\n'
    "I1124 00:09:01.603374 21286 model_lifecycle.cc:777] \"failed to load 'm'\"\n"
)


def test_a_models_own_error_in_one_line() -> None:
    log = HEAD + LOAD_ERROR + "error: creating server: Internal - failed to load all models\n"
    assert failure_reason(log) == "model 'm' failed to load: my 'bad' \"thing\" second line"


def test_every_failed_model_once() -> None:
    other = LOAD_ERROR.replace("'m'", "'n'")
    reason = failure_reason(LOAD_ERROR + other + LOAD_ERROR)
    assert reason is not None
    assert reason.count("model 'm' failed") == 1
    assert reason.count("model 'n' failed") == 1


def test_unreadable_configuration() -> None:
    log = (
        "[libprotobuf ERROR /x/text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:16: no field\n"
        "E1124 00:09:02.651322 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'bad': failed\"\n"
    )
    assert failure_reason(log) == "Poll failed for model directory 'bad': failed; config.pbtxt: 1:16: no field"


def test_the_last_word_when_nothing_else_is_known() -> None:
    assert failure_reason(HEAD + "error: creating server: Internal - no reason\n") == (
        "creating server: Internal - no reason"
    )
    assert failure_reason(HEAD + "/a folder/tritonserver: unrecognized option '--x'\nUsage: tritonserver\n") == (
        "unrecognized option '--x'"
    )
    assert failure_reason(HEAD) is None


def test_taken_port() -> None:
    for service in ("GRPC", "HTTP", "Metrics"):
        log = (
            f'E1124 00:14:25.222664 1 main.cc:257] "failed to start {service} service: Unavailable - Socket '
            "'127.0.0.1:19000' already in use \"\n"
        )
        assert unbound_service(HEAD + log) == service.lower()
    assert unbound_service(HEAD) is None


def test_end_of_the_log() -> None:
    log = "\n".join(map(str, range(100))) + "\n\n"
    assert last_line(log) == "99"
    assert last_line("") == "nothing"
    assert tail(log).splitlines()[0] == "61"
