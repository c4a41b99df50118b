"""What the ablations of the plan compare: how plan layers rotate, a planner without towers, and sheets as text."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from baton_diffusers import default_checkpoint
from baton_diffusers.evaluation.plan_variants import (
    SHEET_LENGTH,
    TowerlessPlanner,
    load_planner,
    set_plan_rope,
    sheet_embeds,
)
from baton_diffusers.models.va_planner import VAPlannerModel
from tests.models.test_transformer_dual_branch import BATCH_SIZE, differ, make_inputs, run
from tests.models.test_va_planner import DURATION, make_planner
from tests.tiny import random_plan, tiny_transformer


@pytest.mark.parametrize(
    "variant, reads_time, reads_place", [("full", True, True), ("temporal", True, False), ("none", False, False)]
)
def test_variants_of_rs_rope_read_what_they_say(variant, reads_time, reads_place):
    model, plan, inputs = tiny_transformer(), random_plan(BATCH_SIZE), make_inputs()
    full = run(model, inputs, plan=plan)
    set_plan_rope(model, variant)
    video, audio = run(model, inputs, plan=plan)
    assert differ(video, full[0], 1e-4) == (variant != "full")
    for name, is_read in (("video_times", reads_time), ("video_centres", reads_place)):
        found, _ = run(model, inputs, plan=replace(plan, **{name: getattr(plan, name) + 0.5}))
        assert differ(found, video, 1e-4) if is_read else torch.equal(found, video)
    _, moved = run(model, inputs, plan=replace(plan, audio_times=plan.audio_times + 0.5))
    assert differ(moved, audio, 1e-4) == reads_time


def test_another_variant_is_refused():
    with pytest.raises(ValueError, match="the plan's RoPE is 'spatial': choose one of full, temporal, none"):
        set_plan_rope(tiny_transformer(), "spatial")


def test_a_planner_without_towers_plans_by_a_linear_map(tmp_path):
    planner = TowerlessPlanner(**make_planner().config).eval()
    assert not any("tower" in name or "queries" in name for name, _ in planner.named_parameters())
    prompt = torch.tensor([[3, 4, 5, 6, 7]]), torch.ones(1, 5, dtype=torch.long)
    with torch.no_grad():
        plan, towers = planner(*prompt, DURATION), make_planner()(*prompt, DURATION)
        assert plan.video_tokens.shape == towers.video_tokens.shape
        assert plan.audio_tokens.shape == towers.audio_tokens.shape
        planner.audio_placeholder += 1  # the video's tokens come before it in the causal pass
        assert torch.equal(planner(*prompt, DURATION).video_tokens, plan.video_tokens)

    planner.save_pretrained(tmp_path / "towerless")
    make_planner().save_pretrained(tmp_path / "towers")
    loaded = load_planner(tmp_path / "towerless")
    assert type(loaded) is TowerlessPlanner and type(load_planner(tmp_path / "towers")) is VAPlannerModel
    with torch.no_grad():
        assert torch.equal(loaded.eval()(*prompt, DURATION).audio_tokens, planner(*prompt, DURATION).audio_tokens)


def test_a_sheet_as_text_is_what_the_towers_read_of_it():
    folder = default_checkpoint()
    planner, tokenizer = load_planner(folder / "planner"), AutoTokenizer.from_pretrained(folder / "planner_tokenizer")
    planner.eval()
    sheets = ["red ball left <|0.50|> red ball bounces", "red ball left <|1.50|> red ball bounces", ""]
    read = sheet_embeds(planner, tokenizer, ["A red ball bounces."] * 3, sheets)
    assert read.shape == (3, SHEET_LENGTH, planner.config.language_model_config["hidden_size"])
    lengths = read.any(dim=-1).sum(dim=1).tolist()
    assert lengths[0] == lengths[1] > lengths[2] > 0 and not read[:, 0].any()  # zero where there is no text
    same = (read[0] == read[1]).all(dim=-1)[-lengths[0] :].nonzero()[:, 0]
    assert len(same) == same[-1] + 1 < lengths[0]  # the sheets differ from their first timestamp on
    alone = sheet_embeds(planner, tokenizer, ["A red ball bounces."], sheets[2:])
    assert torch.allclose(alone[0], read[2], atol=1e-5)
