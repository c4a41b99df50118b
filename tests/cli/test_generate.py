import copy

import numpy as np
import PIL.Image
import pytest

from baton_diffusers.cli import loading
from baton_diffusers.media import read_audio, read_clip, read_video, write_clip
from baton_diffusers.memory import RECIPES
from baton_diffusers.shipped import default_checkpoint
from baton_diffusers.stage import render_clip, sample_scene
from tests.cli.commands import PROMPT, loaded_in_vain, run


def test_generate_writes_a_clip_and_its_sheet(tmp_path, capsys):
    path, sheet = tmp_path / "clip.mp4", tmp_path / "clip.png"
    assert run("generate", PROMPT, "--output", path, "--steps", 2, "--scale", 2, "--sheet", sheet) == 0
    clip = read_clip(path)
    assert clip.frames.shape == (49, 128, 128, 3) and clip.waveform.shape == (1, 49000)
    assert (clip.frame_rate, clip.sampling_rate) == (16, 16000)
    assert PIL.Image.open(sheet).width > 128
    printed = capsys.readouterr().out
    assert "49 frames, 3.06 s; generated in" in printed and "peak memory" in printed


def test_the_options_decide_about_the_clip(tmp_path, nano):
    def frames(*options):
        assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--steps", 1, "--num-frames", 17, *options) == 0
        return read_clip(tmp_path / "clip.mp4").frames

    first = frames("--seed", 1)
    assert np.array_equal(first, frames("--seed", 1))
    assert not np.array_equal(first, frames("--seed", 2))
    assert not np.array_equal(first, frames("--seed", 1, "--no-plan"))
    assert not np.array_equal(first, frames("--seed", 1, "--guidance-scale", 1))
    assert not np.array_equal(first, frames("--seed", 1, "--guidance", "ccl"))
    assert not np.array_equal(first, frames("--seed", 1, "--negative-prompt", "A bell rings."))
    assert not np.array_equal(first, frames("--seed", 1, "--audio-negative-prompt", "A bell rings."))
    alone = frames("--seed", 1, "--guidance", "none")
    assert np.array_equal(alone, frames("--seed", 1, "--guidance", "text", "--guidance-scale", 1))


def test_one_modality_is_made_alone(tmp_path, capsys, nano):
    assert run("generate", PROMPT, "-o", tmp_path / "film.mp4", "--steps", 1, "--only", "video") == 0
    assert read_video(tmp_path / "film.mp4")[0].shape == (49, 64, 64, 3)
    with pytest.raises(ValueError, match="has no audio stream"):
        read_audio(tmp_path / "film.mp4")
    assert run("generate", PROMPT, "-o", tmp_path / "sound.wav", "--steps", 1, "--only", "audio") == 0
    assert read_audio(tmp_path / "sound.wav")[0].shape == (1, 49000)
    printed = capsys.readouterr().out
    assert "film.mp4: 49 frames, 3.06 s;" in printed and "sound.wav: 49000 samples, 3.06 s;" in printed


def test_the_size_of_the_clip_is_chosen(tmp_path, nano, capsys):
    path, options = tmp_path / "clip.mp4", ("--steps", 1, "--no-plan", "--guidance", "none")
    size = ("--num-frames", 17, "--height", 48, "--width", 80)
    assert run("generate", PROMPT, "-o", path, *options, *size) == 0
    clip = read_clip(path)
    assert clip.frames.shape == (17, 48, 80, 3) and clip.waveform.shape == (1, 17000)
    path.unlink()
    for option, number in (("--num-frames", 18), ("--height", 50), ("--width", 0)):
        assert run("generate", PROMPT, "-o", path, *options, option, number) == 2
        name = option.strip("-").replace("-", "_")
        assert f"`{name}` is {number}, but " in capsys.readouterr().err
    assert not path.exists()


def test_what_the_checkpoint_is_not_made_for_is_refused(tmp_path, nano, capsys):
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--audio-prompt", "rain") == 2
    assert "`audio_prompt` is 'rain', but this checkpoint has no form for it" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_student_takes_few_steps_without_guidance(tmp_path, nano, capsys):
    path, student = tmp_path / "clip.mp4", ("--student", default_checkpoint() / "turbo")
    before, steps, parts = (
        copy.deepcopy(nano.transformer.state_dict()),
        nano.config.num_inference_steps,
        nano.components,
    )
    try:
        assert run("generate", PROMPT, "-o", path, "--turbo") == 0
        assert nano.config.num_inference_steps == 4 and path.is_file()
    finally:  # the fixture is other tests', too
        nano.transformer.load_state_dict(before)
        nano.register_modules(**{name: parts[name] for name in ("scheduler", "audio_scheduler")})
        nano.register_to_config(num_inference_steps=steps)
    for wrong, message in (
        ((*student, "--guidance-scale", 2), "a student needs no guidance"),
        ((*student, "--turbo"), "--turbo and --student both name a student"),
        (("--turbo", "--model", tmp_path), "has no folder turbo"),
        (("--student", "nowhere"), "the student 'nowhere' is neither a folder nor a Hub id"),
    ):
        assert run("generate", PROMPT, "-o", path, *wrong) == 2
        assert message in capsys.readouterr().err


def test_noise_levels_of_ones_own(tmp_path, nano, capsys):
    path, calls = tmp_path / "clip.mp4", []
    hook = nano.transformer.register_forward_pre_hook(
        lambda _, __, inputs: calls.append(inputs["timestep"].max().item()), with_kwargs=True
    )
    options = "generate", PROMPT, "-o", path, "--guidance", "none", "--no-plan"
    assert run(*options, "--timesteps", "1000,757,522") == 0
    assert [round(timestep) for timestep in calls] == [1000, 757, 522]
    calls.clear()
    assert run(*options, "--sigmas", "1,0.5", "--steps", 2) == 0
    hook.remove()
    assert len(calls) == 2 and path.is_file()
    for wrong, message in (
        (("--sigmas", "1,half"), "--sigmas 1,half is no list of numbers"),
        (("--sigmas", "1,0.5,0.7"), "`sigmas` is [1.0, 0.5, 0.7], but must be a list of falling numbers"),
        (("--sigmas", "1", "--timesteps", "1000"), "`sigmas` and `timesteps` both set"),
        (("--timesteps", "1000,1", "--steps", 3), "--steps 3 does not fit the 2 steps"),
    ):
        assert run(*options, *wrong) == 2
        assert message in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
def test_a_clip_is_made_by_a_recipe(name, tmp_path):
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--steps", 2, "--recipe", name) == 0
    assert read_clip(tmp_path / "clip.mp4").frames.shape == (49, 64, 64, 3)


def test_what_is_given_stays(tmp_path, nano):
    def clip(name, *options):
        assert run("generate", PROMPT, "-o", tmp_path / name, "--steps", 1, "--seed", 3, *options) == 0
        return read_clip(tmp_path / name)

    film = render_clip(sample_scene(0), 0)
    write_clip(tmp_path / "film.mp4", film.frames, film.waveform, film.frame_rate, film.sampling_rate, scale=2)
    heard = clip("heard.mp4", "--video", tmp_path / "film.mp4", "--sheet", tmp_path / "heard.png")
    assert heard.frames.shape == (49, 128, 128, 3) and np.abs(heard.frames[:, ::2, ::2] - 1.0 * film.frames).mean() < 4
    seen = clip("seen.mp4", "--audio", tmp_path / "film.mp4")
    assert np.abs(seen.waveform - film.waveform).mean() < 0.01 and PIL.Image.open(tmp_path / "heard.png").width > 128
    PIL.Image.fromarray(film.frames[0]).save(tmp_path / "first.png")
    begun = clip("begun.mp4", "--image", tmp_path / "first.png")
    styled = clip("styled.mp4", "--image", tmp_path / "first.png", "--reference-audio", tmp_path / "film.mp4")
    assert not np.array_equal(styled.waveform, begun.waveform)
    goes_on = clip("on.mp4", "--continue-from", tmp_path / "film.mp4", "--continue-seconds", 0.5)
    assert np.abs(begun.frames[0] - 1.0 * film.frames[0]).mean() < 16  # the error of the codec in a first frame
    assert np.abs(goes_on.frames[:9] - 1.0 * film.frames[-9:]).mean() < 16


def test_what_an_mp4_does_not_take_is_refused_before_weights_are_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    PIL.Image.new("RGB", (33, 32)).save(tmp_path / "odd.gif")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3.0,\nodd.gif\n#EXT-X-ENDLIST\n")
    for options, message in (
        (("--video", tmp_path / "odd.gif", "--scale", 3), "odd.gif of 96x99 pixels"),
        (("--video", tmp_path / "list.m3u8"), "list.m3u8 is a playlist"),
        (("--audio", tmp_path / "list.m3u8"), "list.m3u8 is a playlist"),
    ):
        assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", *options) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "clip.mp4").exists()


def test_a_kept_plan_is_followed(tmp_path, nano, capsys):
    kept = tmp_path / "plan.safetensors"
    options = ("-o", tmp_path / "clip.mp4", "--steps", 2)
    assert run("generate", PROMPT, *options, "--save-plan", kept) == 0
    assert capsys.readouterr().out.endswith(f"{kept}\n")
    planned = read_clip(tmp_path / "clip.mp4").frames
    assert run("generate", PROMPT, *options, "--plan", kept) == 0
    assert np.array_equal(planned, read_clip(tmp_path / "clip.mp4").frames)


def test_a_plan_that_is_not_made_is_not_kept(tmp_path, nano, monkeypatch, capsys):
    monkeypatch.setattr(nano, "planner", None)
    assert run("generate", PROMPT, "-o", tmp_path / "a.mp4", "--save-plan", tmp_path / "plan.safetensors") == 2
    assert "--save-plan keeps what a planner makes, and this checkpoint has none" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
