"""A reader of prompts that checks cue sheets before anything is rendered. Ours."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from ..cues import Sheet, parse_sheet, sheet_turns


# Probability of a name that the checker does not know, and of a fact beyond its steps: that of the least likely answer.
_UNKNOWN = 1e-6
_SURE = 0.8  # least probability of a name for which the prompt leaves no choice
# In the search for readings: how many are kept, how many next steps are tried, and how many first deeds of an actor.
_BEAMS = 48
_STEPS = 24
_FIRST_DEEDS = 3


class _Step(NamedTuple):
    """What may happen in one step: its log-probability, who acts, what it does, and to whom."""

    score: float
    name: str
    deeds: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass
class PlanCheckerOutput(BaseOutput):
    """
    What the checker reads in a batch of prompts, as log-probabilities.

    Args:
        cast (`torch.Tensor` of shape `(batch_size, num_names, 2 + num_places)`): where each name stands: absent, at each of the
            places, or somewhere that the prompt leaves open.
        actors (`torch.Tensor` of shape `(batch_size, max_steps, num_names + 1)`): who acts in each step; 0 is nobody.
        deeds (`torch.Tensor` of shape `(batch_size, max_steps, max_deeds, num_deeds + 1)`): what is done in each step, in order;
            0 is nothing.
    """

    cast: torch.Tensor
    actors: torch.Tensor
    deeds: torch.Tensor


class PlanChecker(ModelMixin, ConfigMixin):
    """
    Reads from a prompt who is there, where, and who does what in which order, and scores cue sheets against it.

    One layer of cross-attention reads the text encoder's hidden states, as a transformer's layers do. A *step* is a run of cues
    of one actor.

    Args:
        text_dim (`int`): width of the text encoder's hidden states.
        names (`list[str]`): names that a cast may have, such as "red ball".
        places (`list[str]`): places of a cast.
        deeds (`dict[str, list[str]]`): what a cue may say after a name that ends with a word: `{"face": ["says three"]}`.
        max_steps (`int`, defaults to 4): steps that the checker reads.
        max_deeds (`int`, defaults to 3): cues of a step that the checker reads.
        num_attention_heads (`int`, defaults to 4): heads; they divide `text_dim`.
    """

    @register_to_config
    def __init__(
        self,
        text_dim: int,
        names: list[str],
        places: list[str],
        deeds: dict[str, list[str]],
        max_steps: int = 4,
        max_deeds: int = 3,
        num_attention_heads: int = 4,
    ):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(names) + max_steps * (1 + max_deeds), text_dim))
        self.attention = nn.MultiheadAttention(text_dim, num_attention_heads, batch_first=True)
        self.norm = nn.LayerNorm(text_dim)
        self.cast_head = nn.Linear(text_dim, 2 + len(places))
        self.actor_head = nn.Linear(text_dim, 1 + len(names))
        self.deed_head = nn.Linear(text_dim, 1 + sum(map(len, deeds.values())))

    @property
    def deeds(self) -> list[str]:
        """All deeds, in the order of the answers."""
        return [deed for some in self.config.deeds.values() for deed in some]

    def forward(self, encoder_hidden_states: torch.Tensor) -> PlanCheckerOutput:
        """
        Args:
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, text_length, text_dim)`): the prompts' embeddings, zero where
                there is no text.

        Returns:
            [`PlanCheckerOutput`]
        """
        config = self.config
        is_padding = (encoder_hidden_states == 0).all(dim=-1)
        is_padding[:, 0] = False  # an empty prompt
        queries = self.queries.expand(len(encoder_hidden_states), -1, -1)
        read, _ = self.attention(
            queries, encoder_hidden_states, encoder_hidden_states, key_padding_mask=is_padding, need_weights=False
        )
        cast, actors, deeds = self.norm(read).split(
            [len(config.names), config.max_steps, config.max_steps * config.max_deeds], dim=1
        )
        return PlanCheckerOutput(
            cast=self.cast_head(cast).float().log_softmax(dim=-1),
            actors=self.actor_head(actors).float().log_softmax(dim=-1),
            deeds=self.deed_head(deeds).float().log_softmax(dim=-1).unflatten(1, (config.max_steps, config.max_deeds)),
        )

    def score(self, read: PlanCheckerOutput, sheets: Sequence[str]) -> list[float]:
        """
        How well sheets fit prompts: the log-probability of everything in a sheet, in nats; 0 is the best.

        A place that a prompt leaves open lowers the score of every sheet equally.

        Args:
            read ([`PlanCheckerOutput`]): what was read in the prompts.
            sheets (`Sequence[str]`): sheets, see [`baton_diffusers.cues`]; equally many for each prompt, in a row.

        Returns:
            `list[float]`: a score for each sheet.

        Raises:
            ValueError: if a sheet is malformed.
        """
        cast, actors, deeds = (values.exp().double().cpu() for values in (read.cast, read.actors, read.deeds))
        scores = []
        repeats = len(sheets) // len(cast)
        for number, text in enumerate(sheets):
            row = number // repeats
            facts = self._probabilities(cast[row], actors[row], deeds[row], parse_sheet(text))
            scores.append(sum(math.log(max(float(value), _UNKNOWN)) for value in facts))
        return scores

    def readings(
        self, read: PlanCheckerOutput, row: int, number: int = 1
    ) -> list[tuple[dict[str, list[str]], list[str]]]:
        """
        The likeliest readings of one prompt, the best first. A reading is a set of answers that fit together. Whoever acts is
        there, does what it can do, and does not act twice in succession; a box hits one of the cast.

        Args:
            read ([`PlanCheckerOutput`]): what was read in the prompts.
            row (`int`): which of them.
            number (`int`, defaults to 1): how many readings at most.

        Returns:
            Of each reading, the places that each name of the cast may have, and the texts of the cues in order.
        """
        config, places = self.config, list(self.config.places)
        present, actors = read.cast[row].double().cpu().exp(), read.actors[row].double().cpu()
        deeds = read.deeds[row].double().cpu()
        # If nobody acts from a step on
        rest = (actors[:, 0] + deeds[:, :, 0].sum(dim=-1)).flip(0).cumsum(0).flip(0).tolist()
        able = self.possible_deeds(config.names)
        beams: list[tuple[float, tuple[_Step, ...]]] = [(0.0, ())]
        ended = [(rest[0], ())]
        for index in range(config.max_steps):
            options = self._likely_steps(able, actors[index], deeds[index])
            beams = [
                (score + step.score, (*steps, step))
                for score, steps in beams
                for step in options
                if not steps or steps[-1].name != step.name
            ]
            beams = heapq.nlargest(_BEAMS, beams, key=lambda beam: beam[0])
            after = rest[index + 1] if index + 1 < config.max_steps else 0.0
            ended += [(score + after, steps) for score, steps in beams]
        found = {}
        for score, steps in heapq.nlargest(_BEAMS, ended, key=lambda beam: beam[0]):
            involved = dict.fromkeys(name for step in steps for name in (step.name, *step.targets))
            if (cast := self._cast_with(involved, present)) is not None:
                score += sum(
                    math.log(max(1 - p if name in cast else p, _UNKNOWN))
                    for name, p in zip(config.names, present[:, 0].tolist(), strict=True)
                )
                found[steps] = score, cast
        best = heapq.nlargest(number, found, key=lambda steps: found[steps][0])
        return [
            (
                {name: [places[place]] if place < len(places) else places for name, place in found[steps][1].items()},
                [f"{step.name} {deed}" for step in steps for deed in step.deeds],
            )
            for steps in best
        ]

    def open_names(self, read: PlanCheckerOutput, row: int) -> list[list[str]]:
        """
        Names that a prompt leaves open: if it does not say the colour of a bell, the bell may have any colour.

        Args:
            read ([`PlanCheckerOutput`]): what was read in the prompts.
            row (`int`): which of them.

        Returns:
            For each actor of the likeliest cast whose name is unsure, all names that end with the same word.
        """
        names, probabilities = self.config.names, read.cast[row].exp()
        unsure = [
            name for name in self.readings(read, row)[0][0] if 1 - float(probabilities[names.index(name), 0]) < _SURE
        ]
        return [[other for other in names if other.split()[-1] == name.split()[-1]] for name in unsure]

    def possible_deeds(self, cast: Sequence[str]) -> dict[str, list[str]]:
        """What each name of a cast can do: its deeds, without those that name itself or somebody who is absent."""
        able = {}
        for name in cast:
            others = [other for other in self.config.names if other == name or other not in cast]
            deeds = self.config.deeds.get(name.split()[-1], [])
            able[name] = [deed for deed in deeds if not any(deed.endswith(f" {other}") for other in others)]
        return able

    def _cast_with(self, involved: Iterable[str], probabilities: torch.Tensor) -> dict[str, int] | None:
        """The likeliest cast that includes everybody who is involved: each name with the number of its place, or the number of
        places if its place is open. The cast has as many names that end with the same word as the prompt has; a colour that the
        prompt leaves open is decided once. None if there are more names than places."""
        names, num_places = self.config.names, len(self.config.places)
        present = dict(zip(names, (1 - probabilities[:, 0]).tolist(), strict=True))
        chosen = set(involved)
        if len(chosen) > num_places:
            return None
        others = set()
        for noun in dict.fromkeys(name.split()[-1] for name in names):
            some = sorted((name for name in names if name.split()[-1] == noun), key=lambda name: -present[name])
            missing = round(sum(present[name] for name in some)) - sum(name in chosen for name in some)
            others |= set([name for name in some if name not in chosen][: max(missing, 0)])
        chosen |= set(sorted(others, key=lambda name: -present[name])[: num_places - len(chosen)])
        cast: dict[str, int] = {}
        for name in sorted(chosen, key=lambda name: (-present[name], name)):
            place = int(probabilities[names.index(name), 1:].argmax())
            cast[name] = num_places if place in cast.values() else place
        return cast

    def _likely_steps(self, possible: dict[str, list[str]], actors: torch.Tensor, deeds: torch.Tensor) -> list[_Step]:
        """What may happen in one step, with log-probabilities: who acts, and its deeds, one to all of the answers of a step. `possible`
        are the deeds of every name, in order."""
        options, answers = [], self.deeds
        for number, (name, done) in enumerate(possible.items(), start=1):
            able = [answers.index(deed) + 1 for deed in done]
            if not able:
                continue
            best = [max(able, key=lambda answer, row=row: float(row[answer])) for row in deeds]
            firsts = heapq.nlargest(_FIRST_DEEDS, able, key=lambda answer: float(deeds[0, answer]))
            for first in firsts:
                score = float(actors[number] + deeds[0, first] + deeds[1:, 0].sum())
                done = [first]
                for i in range(len(deeds)):
                    if i:
                        score += float(deeds[i, best[i]] - deeds[i, 0])
                        done = [*done, best[i]]
                    texts = tuple(answers[answer - 1] for answer in done)
                    targets = tuple(
                        other for other in self.config.names if any(text.endswith(f" {other}") for text in texts)
                    )
                    options.append(_Step(score, name, texts, targets))
        return heapq.nlargest(_STEPS, options, key=lambda step: step.score)

    def _probabilities(
        self, cast: torch.Tensor, actors: torch.Tensor, deeds: torch.Tensor, sheet: Sheet
    ) -> list[float]:
        config = self.config
        places = {member.name: member.place for member in sheet.cast}
        facts = [0.0] * len(places.keys() - set(config.names))
        for row, name in zip(cast.tolist(), config.names, strict=True):
            if name not in places:
                facts.append(row[0])
            elif places[name] in config.places:
                facts.append(row[1 + config.places.index(places[name])] + row[-1] / len(config.places))
            else:
                facts.append(0.0)
        steps = sheet_steps(sheet, config.names)
        facts += [0.0] * max(0, len(steps) - config.max_steps)
        for index in range(config.max_steps):
            name, done = steps[index] if index < len(steps) else (None, [])
            facts.append(_answer(actors[index], config.names, name))
            facts += [0.0] * max(0, len(done) - config.max_deeds)
            for i in range(config.max_deeds):
                facts.append(_answer(deeds[index, i], self.deeds, done[i] if i < len(done) else None))
        return facts


def sheet_steps(sheet: Sheet, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The steps of a sheet: runs of cues of one actor, each its name and what it does, cue by cue. A cue that begins with none of
    the `names` is a step of its own, under its whole text."""
    return [(turn.who, list(turn.deeds)) for turn in sheet_turns(sheet, math.inf, names)]


def _answer(probabilities: torch.Tensor, answers: Sequence[str], answer: str | None) -> float:
    if answer is None:
        return float(probabilities[0])
    return float(probabilities[1 + answers.index(answer)]) if answer in answers else 0.0
