"""examples/nano/assemble_nano.py, on the parts of baton-nano."""

import pytest
import torch
from diffusers import MMAudioVocoder

from baton_diffusers import BatonPipeline
from baton_diffusers.models.vocoder_griffin_lim import GriffinLimVocoder
from baton_diffusers.shipped import default_checkpoint
from tests.scripts import load_script


NANO = default_checkpoint()
TRANSFORMER = ("--transformer", NANO, "--planner", NANO / "planner")


@pytest.fixture(scope="module")
def script():
    return load_script("examples/nano/assemble_nano.py")


@pytest.fixture
def parts(tmp_path):
    """Links to nano's parts, but for its vocoder."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in NANO.iterdir():
        if part.is_dir() and part.name != "vocoder":
            (folder / part.name).symlink_to(part)
    return folder


def assemble(script, *arguments, parts=NANO):
    script.main([str(argument) for argument in ("--parts", parts, *TRANSFORMER, *arguments)])


def save_vocoder(folder, num_mels):
    torch.manual_seed(0)
    MMAudioVocoder(
        num_mels=num_mels,
        upsample_initial_channel=32,
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(32, 32),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    ).save_pretrained(folder)
    return folder


def test_a_pipeline_is_replaced_and_its_card_stays(script, parts, tmp_path, capsys):
    output = tmp_path / "nano"
    assemble(script, "--output", output, parts=parts)
    assert isinstance(BatonPipeline.from_pretrained(output).vocoder, GriffinLimVocoder)
    (output / "README.md").write_text("The card.")
    (output / "figures").mkdir()
    (output / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").write_text(
        "a shard of the last one"
    )
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*")}

    with pytest.raises(SystemExit, match="2"):
        assemble(script, "--output", output)
    assert f"{output} is not empty: give a new folder, or --overwrite" in capsys.readouterr().err
    assert before == {file: file.stat().st_mtime_ns for file in output.rglob("*")}

    vocoder = save_vocoder(tmp_path / "vocoder", num_mels=64)
    assemble(script, "--output", output, "--overwrite", "--no-planner", "--vocoder", vocoder)
    assert (output / "README.md").read_text() == "The card." and (output / "figures").is_dir()
    pipe = BatonPipeline.from_pretrained(output)
    assert isinstance(pipe.vocoder, MMAudioVocoder) and pipe.planner is None and not (output / "planner").exists()
    assert [file.name for file in (output / "transformer").glob("*.safetensors")] == [
        "diffusion_pytorch_model.safetensors"
    ]
    weights = pipe.vocoder.state_dict()
    for name, value in MMAudioVocoder.from_pretrained(vocoder).state_dict().items():
        assert torch.equal(weights[name], value.half().float())


def test_a_vocoder_among_the_parts_is_taken(script, parts, tmp_path):
    save_vocoder(parts / "vocoder", num_mels=64)
    assemble(script, "--output", tmp_path / "nano", parts=parts)
    vocoder = BatonPipeline.from_pretrained(tmp_path / "nano").vocoder
    assert isinstance(vocoder, MMAudioVocoder) and vocoder.config.upsample_initial_channel == 32


@pytest.mark.parametrize("num_mels", [None, 32])
def test_a_vocoder_that_does_not_fit_is_refused(script, tmp_path, capsys, num_mels):
    folder = NANO / "vae" if num_mels is None else save_vocoder(tmp_path / "vocoder", num_mels)
    with pytest.raises(SystemExit, match="2"):
        assemble(script, "--output", tmp_path / "nano", "--vocoder", folder)
    message = f"{folder} holds no MMAudioVocoder" if num_mels is None else "`mel_bins` 64, but the vocoder takes 32"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "nano").exists()
