"""The plan checker: sheets that say what it reads in a prompt score best."""

import pytest
import torch

from baton_diffusers.cues import parse_sheet
from baton_diffusers.models.plan_checker import PlanChecker, PlanCheckerOutput, sheet_steps


NAMES, PLACES = ["red ball", "blue box"], ["left", "right"]
DEEDS = {"ball": ["bounces"], "box": ["hits red ball"]}
SHEET = (
    "red ball left; blue box right <|0.50|> red ball bounces <|0.90|> red ball bounces <|1.50|> blue box hits red ball"
)


@pytest.fixture
def checker():
    torch.manual_seed(0)
    return PlanChecker(8, NAMES, PLACES, DEEDS, max_steps=2, max_deeds=2, num_attention_heads=2).eval()


def certain(*answers, number):
    """Log-probabilities that are sure of each answer."""
    return torch.nn.functional.one_hot(torch.tensor(answers), number).float().clamp(min=1e-9).log()[None]


@pytest.fixture
def read():
    """What a prompt says that tells all of SHEET but the place of the box."""
    deeds = torch.stack([certain(1, 1, number=3)[0], certain(2, 0, number=3)[0]])[None]
    return PlanCheckerOutput(cast=certain(1, 3, number=4), actors=certain(1, 2, number=3), deeds=deeds)


def test_steps_are_runs_of_one_actor():
    assert sheet_steps(parse_sheet(SHEET), NAMES) == [
        ("red ball", ["bounces", "bounces"]),
        ("blue box", ["hits red ball"]),
    ]
    assert sheet_steps(parse_sheet("<|0.10|> a green star <|0.20|> red ball"), NAMES) == [
        ("a green star", [""]),
        ("red ball", [""]),
    ]


@pytest.mark.parametrize(
    "change",
    [
        ("red ball left", "red ball right"),
        ("red ball left; ", ""),
        ("red ball bounces <|1.50|>", "blue box bounces <|1.50|>"),
        (" <|0.90|> red ball bounces", ""),
        ("blue box hits", "blue box loves"),
        ("blue box right", "green star right"),
        ("<|0.50|>", "<|0.20|> red ball bounces <|0.50|>"),
    ],
)
def test_a_sheet_that_says_something_else_scores_worse(checker, read, change):
    true, false = checker.score(read, [SHEET, SHEET.replace(*change)])
    assert true > false + 5


def test_a_place_that_is_left_open_costs_every_sheet_the_same(checker, read):
    scores = checker.score(read, [SHEET, SHEET.replace("box right", "box left")])
    assert scores[0] == pytest.approx(scores[1]) == pytest.approx(torch.tensor(0.5).log().item(), abs=1e-4)


def test_padding_is_not_read_and_rows_do_not_mix(checker):
    text = torch.randn(2, 5, 8)
    text[1, 3:] = 0
    alone = checker(text[1:, :3])
    torch.testing.assert_close(checker(text).cast[1:], alone.cast)
    assert all(torch.isfinite(value).all() for value in checker(torch.zeros(1, 4, 8)).values())
    scores = checker.score(checker(text), [SHEET, "", SHEET, ""])
    assert scores[2:] == pytest.approx(checker.score(alone, [SHEET, ""]), abs=1e-4)


def test_the_first_reading_is_what_was_read(checker, read):
    ((cast, cues),) = checker.readings(read, 0)
    assert cast == {"red ball": ["left"], "blue box": ["left", "right"]}
    assert cues == ["red ball bounces", "red ball bounces", "blue box hits red ball"]


def test_a_reading_gives_nobody_a_deed_of_others(checker, read):
    read.deeds[0, 0] = certain(2, 2, number=3)[0]  # a ball that hits, to the reader
    assert checker.readings(read, 0)[0][1][0] == "red ball bounces"


def test_readings_make_sense_as_a_whole_and_come_in_order(checker, read):
    read.cast[0, 1] = torch.tensor([0.95, 0.01, 0.02, 0.02]).log()  # the box is hardly there
    read.actors[0, 1] = torch.tensor([0.3, 0.1, 0.6]).log()  # and may act
    read.deeds[0, 1, 0] = torch.tensor([0.3, 0.1, 0.6]).log()
    readings = checker.readings(read, 0, 5)
    (cast, cues), (other_cast, other_cues) = readings[:2]
    assert list(cast) == ["red ball"] and cues == ["red ball bounces"] * 2  # of each alone, the box would hit
    assert sorted(other_cast) == ["blue box", "red ball"] and other_cues[-1] == "blue box hits red ball"
    assert len({tuple(cues) for _, cues in readings}) == 5


def test_deeds_name_nobody_who_is_absent(checker):
    assert checker.possible_deeds(NAMES) == {"red ball": ["bounces"], "blue box": ["hits red ball"]}
    assert checker.possible_deeds(["blue box"]) == {"blue box": []}


def test_names_are_open_where_the_prompt_leaves_the_colour_open():
    names = ["red ball", "blue ball", "blue box"]
    torch.manual_seed(0)
    checker = PlanChecker(8, names, PLACES, DEEDS, max_steps=2, max_deeds=2, num_attention_heads=2).eval()
    shares = torch.tensor([[[0.5, 0.5, 1e-9, 1e-9], [0.51, 0.49, 1e-9, 1e-9], [0.02, 0.98, 1e-9, 1e-9]]])
    deeds = torch.stack([certain(1, 1, number=3)[0], certain(0, 0, number=3)[0]])[None]
    read = PlanCheckerOutput(cast=shares.log(), actors=certain(1, 0, number=4), deeds=deeds)
    assert checker.open_names(read, 0) == [["red ball", "blue ball"]]
