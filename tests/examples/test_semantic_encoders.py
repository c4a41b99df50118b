"""Training of the semantic encoders on Stage."""

import numpy as np
import pytest
import torch
from semantic_encoders import (
    IDENTITIES,
    LOOKS,
    SOUNDS,
    AudioSemanticConfig,
    AudioSemanticLoss,
    AudioSemanticTraining,
    FrameCollator,
    FrameDataset,
    SoundDataset,
    VideoSemanticConfig,
    VideoSemanticLoss,
    VideoSemanticTraining,
    export_audio_encoder,
    export_video_encoder,
    mel_filters,
    patch_labels,
    sound_labels,
)
from stage_tokenizer import stage_texts, train_tokenizer

from baton_diffusers.stage import Action, Actor, Scene, render_audio, sample_scene, timeline, write_prompt
from baton_diffusers.stage.prompts import EVENT_VERBS
from baton_diffusers.stage.render import Pose
from baton_diffusers.stage.scene import COLOURS, DIGITS, KINDS, SAMPLING_RATE, SPOTS, VOICES
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.trainer import Trainer


SCENE = Scene(
    (Actor("ball", "red", "left"), Actor("face", "purple", "right")),
    (Action("bounce", 0, 2), Action("say", 1, 1, ("three",))),
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(stage_texts(200), max_length=80)


def test_no_word_is_dropped_and_the_words_of_sheets_are_single_tokens(tokenizer):
    for text in (write_prompt(sample_scene(5000), 1), "Ein größerer \U0001f534 xylophone"):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids and ids[-1] == tokenizer.eos_token_id
    decoded = tokenizer.decode(tokenizer("Größer \U0001f534", add_special_tokens=False).input_ids)
    assert decoded.strip() == "größer \U0001f534"
    words = (*KINDS, *COLOURS, *VOICES, *SPOTS, *DIGITS, *EVENT_VERBS.values(), ";")
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert tokenizer.tokenize('"Nine') == [*tokenizer.tokenize('"'), *tokenizer.tokenize("says nine")[1:]]
    assert len(tokenizer.tokenize("39")) == 2


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts(tokenizer):
    other = train_tokenizer(reversed(list(stage_texts(200))), max_length=80)
    assert other.get_vocab() == tokenizer.get_vocab()


def test_patch_labels_say_who_is_where():
    labels = patch_labels(SCENE, [Pose(11.0), Pose(53.0, look="open")], (4, 4)).reshape(4, 4, -1)
    ball, face = labels[..., IDENTITIES.index(("ball", "red"))], labels[..., IDENTITIES.index(("face", "purple"))]
    # the ball spans x 2.5 .. 19.5 and y 39 .. 56
    np.testing.assert_allclose(ball[2], [9 / 16 * 13.5 / 16, 9 / 16 * 3.5 / 16, 0, 0])
    np.testing.assert_allclose(ball[3], [8 / 16 * 13.5 / 16, 8 / 16 * 3.5 / 16, 0, 0])
    assert not ball[:2].any() and face[3, 3] > 0 and not face[:, :2].any()
    np.testing.assert_array_equal(labels[..., len(IDENTITIES) + LOOKS.index("open")], face)


def test_a_jump_moves_the_label_up():
    low, high = (patch_labels(SCENE, [Pose(11.0, y), Pose(53.0)], (4, 4)).reshape(4, 4, -1) for y in (0.0, 26.0))
    index = IDENTITIES.index(("ball", "red"))
    assert low[3, 0, index] > 0 and not high[3, 0, index] and high[1, 0, index] > 0


def test_sound_labels_lie_where_the_sound_is():
    labels = sound_labels(SCENE, 0, 1 / 16, 64)
    waveform = np.pad(np.abs(render_audio(SCENE, 0)), (0, 64 * 1000 - 49000)).reshape(64, 1000).max(axis=1)
    sounding = labels[:, :-1].sum(axis=1)
    assert not waveform[sounding == 0].any() and (waveform[sounding == 1] > 0).all()
    events = timeline(SCENE, 0)
    assert np.flatnonzero(labels[:, -1]).tolist() == [event.frame for event in events]
    word = next(event for event in events if event.kind == "word")
    assert labels[word.frame, SOUNDS.index(("word", "purple", "three"))] == 1


def test_sound_samples_hold_an_event_and_their_own_labels():
    dataset = SoundDataset(16, 1.0)
    for index in range(20):
        sample = dataset[index]
        assert sample["waveform"].shape == (1, SAMPLING_RATE) and sample["labels"].shape == (16, 33)
        assert sample["labels"][:, -1].any() or not sample_scene(index, split="train").script
        loud = sample["waveform"][0].unflatten(0, (16, -1)).abs().amax(dim=1) > 0
        assert not loud[sample["labels"][:, :-1].sum(dim=1) == 0].any()


def test_frames_keep_to_their_split_and_show_events(tokenizer):
    dataset = FrameDataset(4, (4, 4), split="validation")
    samples = [dataset[index] for index in range(6)]
    assert sample_scene(0, split="validation").split == "validation"
    batch = FrameCollator(tokenizer, 36)(samples)
    assert batch["pixel_values"].shape == (24, 3, 64, 64) and batch["labels"].shape == (24, 16, 17)
    assert batch["pixel_values"].abs().max() <= 1
    captions = [caption for sample in samples for caption in sample["captions"]]
    expected = torch.tensor([[one == other for other in captions] for one in captions])
    assert torch.equal(batch["match"], expected)


def test_a_scene_in_which_nothing_happens_is_trained_on():
    index = next(index for index in range(1000) if not sample_scene(index, split="train").script)
    assert len(FrameDataset(4, (4, 4))[index]["captions"]) == 4
    assert SoundDataset(16, 1.0)[index]["waveform"].shape == (1, 16000)


def test_mel_filters_leave_a_flat_spectrum_flat():
    filters = mel_filters(512, 40, 16000)
    torch.testing.assert_close(filters.sum(dim=1), torch.ones(40))
    assert (filters.argmax(dim=1).diff() >= 0).all()


def test_a_video_encoder_is_trained_and_exported(tokenizer, tmp_path):
    width = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = VideoSemanticConfig(
        trainer=TrainerConfig(run_dir=str(tmp_path), steps=2, batch_size=2, ema_decay=None),
        tokenizer="",
        output="",
        vision_config={**width, "num_hidden_layers": 3, "image_size": 64, "patch_size": 16},
        text_config={
            **width,
            "num_hidden_layers": 1,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 36,
            "projection_size": 16,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
        video_grid=(2, 2),
        statistics_clips=4,
    )
    module = VideoSemanticTraining(config)
    trainer = Trainer(
        config.trainer,
        module,
        VideoSemanticLoss(config),
        FrameDataset(4, (2, 2)),
        collate_fn=FrameCollator(tokenizer, 36),
    )
    trained = trainer.fit()
    encoder = export_video_encoder(trained, config)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    reference = trained.siglip.vision_model(images, output_hidden_states=True).hidden_states[-2]
    reference = reference.unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    expected = (reference - encoder.feature_mean) / encoder.feature_std
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=1e-4)


def test_an_audio_encoder_is_trained_and_exported(tmp_path):
    config = AudioSemanticConfig(
        trainer=TrainerConfig(run_dir=str(tmp_path), steps=2, batch_size=2, ema_decay=None),
        output="",
        audio_config={
            "sampling_rate": 16000,
            "hidden_size": 12,
            "num_filters": 4,
            "upsampling_ratios": [10, 50],
            "num_lstm_layers": 1,
            "codebook_size": 16,
            "target_bandwidths": [1.0],
        },
        statistics_clips=4,
    )
    module = AudioSemanticTraining(config)
    trainer = Trainer(config.trainer, module, AudioSemanticLoss(config), SoundDataset(16, 1.0))
    encoder = export_audio_encoder(trainer.fit(), config)
    waveforms = [
        torch.from_numpy(render_audio(sample_scene(index, split="validation"), index))[None, None]
        for index in range(4)
    ]
    tokens = torch.cat([encoder.encode(waveform, SAMPLING_RATE)[:, :49] for waveform in waveforms]).flatten(0, 1)
    torch.testing.assert_close(tokens.mean(dim=0), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(tokens.std(dim=0), torch.ones(12), atol=1e-3, rtol=0)


def test_spectra_are_those_within_a_tokens_span():
    config = AudioSemanticConfig(trainer=TrainerConfig(run_dir="", steps=1), output="", audio_config={})
    waveform = torch.zeros(1, 1, SAMPLING_RATE)
    token = SAMPLING_RATE // 16
    waveform[..., 5 * token : 6 * token] = torch.randn(token, generator=torch.Generator().manual_seed(0))
    energy = AudioSemanticLoss(config).log_mel(waveform)[0].mean(dim=1)
    assert energy.shape == (16,) and energy.argmax() == 5
    assert energy[4] == pytest.approx(
        energy[6].item(), abs=0.5
    )  # the window reaches out of the span alike on both sides
