"""A text encoder learns to read prompts of Stage."""

from dataclasses import replace

import pytest
import torch
from transformers import UMT5EncoderModel

from baton_diffusers.stage import Action, Actor, Scene, sample_scene
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.semantic import IDENTITIES
from baton_diffusers.training.text import (
    QUESTIONS,
    QuestionedScenes,
    ReadingLoss,
    TextEncoderTraining,
    answers,
    build_reader,
    parameter_groups,
    share_understood,
)
from baton_diffusers.training.tokenizer import stage_texts, train_tokenizer
from baton_diffusers.training.trainer import Trainer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(stage_texts(100), max_length=80)


def make(tokenizer, tmp_path):
    torch.manual_seed(0)
    trainer = {"steps": 60, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 5, "log_every": 10}
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    config = TextEncoderTraining(
        TrainerConfig(run_dir=str(tmp_path), ema_decay=None, trackers=(), **trainer),
        tokenizer="unused",
        output="unused",
        text_encoder={"vocab_size": len(tokenizer), **sizes},
    )
    return config, build_reader(config)


def test_a_scene_answers_all_questions():
    scene = Scene(
        (Actor("box", "blue", "left"), Actor("ball", "red", "middle"), Actor("face", "orange", "right")),
        (Action("bounce", 1, 2), Action("hit", 0, target=1), Action("say", 2, 2, ("six", "zero"))),
    )
    box, ball, face = (1 + IDENTITIES.index(who) for who in (("box", "blue"), ("ball", "red"), ("face", "orange")))
    right = {name: values.tolist() for name, values in answers(scene).items()}
    assert right == {
        "at": [box, ball, face],
        "actor": [ball, box, face, 0],
        "target": [0, ball, 0, 0],
        "count": [2, 1, 2, 0],
        "word 1": [0, 0, 7, 0],
        "word 2": [0, 0, 1, 0],
        "word 3": [0, 0, 0, 0],
    }


def test_answers_tell_scenes_apart_and_have_a_head_each():
    scenes = {sample_scene(seed) for seed in range(300)}
    told = {tuple(torch.cat([*answers(scene).values()]).tolist()) for scene in scenes}
    assert len(told) == len(scenes)
    for scene in scenes:
        assert all(values.max() < QUESTIONS[name] for name, values in answers(scene).items())


def test_a_scene_keeps_its_answers_and_changes_its_words():
    scenes = QuestionedScenes(3)
    first, again = scenes[1], scenes[4]
    assert first["prompt"] != again["prompt"]
    assert all(torch.equal(first[name], again[name]) for name in QUESTIONS)


def test_padding_changes_no_answer(tokenizer, tmp_path):
    _, reader = make(tokenizer, tmp_path)
    texts = ["A red ball on the left bounces twice.", "A blue bell rings, then a purple face on the right says three."]
    together, alone = tokenizer(texts, padding=True, return_tensors="pt"), tokenizer(texts[:1], return_tensors="pt")
    with torch.no_grad():
        many, one = reader(together.input_ids, together.attention_mask), reader(alone.input_ids, alone.attention_mask)
    for name in QUESTIONS:
        torch.testing.assert_close(many[name][:1], one[name], atol=1e-5, rtol=1e-5)


def test_positions_have_a_rate_of_their_own_and_every_parameter_is_trained(tokenizer, tmp_path):
    config, reader = make(tokenizer, tmp_path)
    groups = parameter_groups(reader, config)
    rates = {id(value): group.get("lr") for group in groups for value in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(reader.parameters()))
    fast = {name for name, value in reader.named_parameters() if rates[id(value)] == config.position_learning_rate}
    assert fast == {name for name, _ in reader.named_parameters() if "relative_attention_bias" in name} != set()
    with pytest.raises(ValueError, match="`position_learning_rate` must be positive, got 0"):
        replace(config, position_learning_rate=0)


def test_what_is_learnt_by_heart_is_understood_and_the_encoder_is_one_of_its_own(tokenizer, tmp_path):
    config, reader = make(tokenizer, tmp_path)
    assert share_understood(reader, tokenizer, 4, "train")["all"] == 0

    class Two(QuestionedScenes):
        def __getitem__(self, index):
            return super().__getitem__(index % 2)  # in the same words each time

    trainer = Trainer(config.trainer, reader, ReadingLoss(tokenizer), Two(2), parameter_groups(reader, config))
    reader = trainer.fit().eval()
    shares = share_understood(reader, tokenizer, 2, "train")
    assert set(shares) == {*QUESTIONS, "all"} and shares["all"] == 1
    assert share_understood(reader, tokenizer, 8, "train")["all"] < 1

    reader.text_encoder.save_pretrained(tmp_path / "text_encoder")
    loaded = UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder").state_dict()
    for name, value in reader.text_encoder.state_dict().items():
        assert torch.equal(loaded[name], value), name
