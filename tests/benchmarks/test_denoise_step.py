import pytest
import torch

from tests.scripts import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/denoise_step.py")


def test_the_tiny_step_is_timed_against_its_floor(benchmark, capsys):
    benchmark.main(["--size", "tiny", "--modes", "eager", "--repeats", "1", "--dtype", "float32"])
    printed = capsys.readouterr().out
    assert "latents 8 x 5 x 8 x 12 and 26 x 5" in printed and "floor" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("eager"))
    assert float(line.split()[1]) > 0 and line.endswith("%")


def test_operations_are_those_of_the_matrix_products(benchmark):
    model = benchmark.random_model(benchmark.SIZES["tiny"][0], "cpu", torch.float32)
    inputs = benchmark.random_inputs(model, "tiny", "cpu", torch.float32)
    dim, ffn, text, length = 48, 96, 16, 120  # 5 x 4 x 6 video tokens
    audio = 26

    def branch(tokens, others):
        projections = 4 * tokens + 2 * tokens + 2 * text + 2 * others  # self, then query and output, text, fusion
        attention = 2 * tokens * (tokens + text + others)
        return 2 * (projections * dim**2 + attention * dim + 2 * tokens * dim * ffn)

    blocks = 2 * (branch(length, audio) + branch(audio, length))
    total = benchmark.count_flops(model, inputs)
    assert blocks < total < 2.2 * blocks  # the embeddings of audio and time are not small in so small a model


def test_what_cannot_be_measured_is_refused(benchmark, tmp_path, capsys):
    for arguments, message in (
        (["--ovi", str(tmp_path)], "is not a checkout of Ovi"),
        (["--size", "huge"], "invalid choice: 'huge'"),
    ):
        with pytest.raises(SystemExit) as exit:
            benchmark.main(arguments)
        assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes the full size")
def test_full_size_needs_a_gpu(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([])
    assert "--size full needs a GPU" in capsys.readouterr().err
