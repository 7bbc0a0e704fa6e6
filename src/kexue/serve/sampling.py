"""Sentences that Markov chains write around words, or in other words, as server-sent events."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field

from kexue.errors import InfeasibleError
from kexue.sampling.text import NGramLM, paraphrase, shorten, write_keywords
from kexue.sampling.text.laws import LanguageModel
from kexue.sampling.text.runs import judge_chains
from kexue.sampling.text.writing import Moment, Writing
from kexue.serve import examples
from kexue.serve.checks import check_text, check_texts
from kexue.serve.errors import ApiError
from kexue.serve.events import Report, stream_events
from kexue.serve.fields import Fields, check_fields
from kexue.serve.service import Service
from kexue.serve.wire import Here, Route

router = APIRouter(tags=["kexue"], route_class=Route)
_MOST_EVENTS = 100
_MOST_LETTERS = 200  # of a text to say otherwise, and of all words


class SamplingRequest(Fields):
    """What sentences should say, and settings of the chains; the same settings and seed give the same sentences."""

    words: list[str] | None = Field(None, examples=[["广州", "美食"]], description="Words that each sentence contains.")
    text: str | None = Field(None, description="In place of words: a sentence to say in other words.")
    length: int | None = Field(None, ge=1, description="With text: say it in at most so many tokens.")
    run: str | None = Field(None, description="Name of a language model; default: the first one.")
    steps: int = Field(500, ge=4, le=10_000, description="States of each chain that are kept; as many come before.")
    chains: int = Field(8, ge=1, le=64, description="Number of chains; each gives one sentence at most.")
    gamma: float | None = Field(None, gt=0, le=20, description="Power of the model's probability; default: 2.")
    seed: int = Field(0, ge=0, le=2**32 - 1)


@router.post("/v1/sampling", responses=examples.SAMPLING)
async def sampling(body: SamplingRequest, service: Here) -> StreamingResponse:
    """Write sentences by sampling, and show how they change.

    The answer is a stream of server-sent events. At most 100 of them are
    `{step, steps, gamma, sentences, log_rho, acceptance}`: the sentence of each chain after a step with its score, and
    the share of moves that passed since the event before. The last event is `{done, results, acceptance, rhat, ess,
    flags, seconds}`, or `{error}`; a run with `flags` should not be trusted yet.
    """
    warnings = check_fields(body, strict=service.settings.strict)
    lm = service.find_writer(body.run)
    _check(body)

    def work(report: Report) -> None:
        started = time.monotonic()
        written = _write(body, service, lm, _Summary(lm, report).take)
        results = zip(written.sentences, written.log_rho, strict=True)
        judged = judge_chains(written.result, lm.decode, body.words or ())
        report(
            {
                "done": True,
                "results": [{"text": text, "log_rho": score} for text, score in results],
                **{key: judged[key] for key in ("acceptance", "rhat", "ess", "flags")},
                "seconds": time.monotonic() - started,
            }
        )

    return await stream_events(service, work, warnings=warnings)


class _Summary:
    """Steps of chains as events, several steps in one."""

    def __init__(self, lm: LanguageModel, report: Report) -> None:
        self.lm, self.report = lm, report
        self.moves: list[bool] = []

    def take(self, now: Moment) -> None:
        """Take a step; report it where it is time."""
        self.moves += now.accepted
        if now.done % -(-now.steps // _MOST_EVENTS) and now.done < now.steps:
            return
        event = {
            "step": now.done,
            "steps": now.steps,
            "gamma": now.gamma,
            "sentences": [self.lm.decode(state) for state in now.states],
            "log_rho": list(now.log_rho),
            "acceptance": sum(self.moves) / len(self.moves),
        }
        self.moves = []
        self.report(event)


def _check(body: SamplingRequest) -> None:
    """Refuse a request without words and text, with both, or with too much."""
    if (body.words is None) == (body.text is None):
        raise ApiError(400, "give words or text, one of them.", param="words" if body.words is None else "text")
    if body.words is not None:
        check_texts(body.words, "words")
        if body.length is not None:
            raise ApiError(400, "length goes with text, not with words.", param="length")
    else:
        check_text(body.text or "", "text")
    letters = len("".join(body.words or (body.text or "",)))
    if letters > _MOST_LETTERS:
        name = "words" if body.text is None else "text"
        raise ApiError(413, f"{name} has {letters:,} letters; at most {_MOST_LETTERS} are allowed.", param=name)


def _write(body: SamplingRequest, service: Service, lm: LanguageModel, watch: Any) -> Writing:
    """Write the sentences; ApiError, with the field, for words or a text that the model cannot write."""
    options: dict[str, Any] = {"steps": body.steps, "chains": body.chains, "gamma": body.gamma}
    options |= {"generator": body.seed, "watch": watch}
    try:
        if body.words is not None:
            return write_keywords(body.words, lm, **options)
        assert body.text is not None
        if body.length is None:
            return paraphrase(body.text, lm=lm, encoder=service.judge, **options)
        return shorten(body.text, lm=lm, encoder=service.judge, target_length=body.length, **options)
    except (ValueError, InfeasibleError) as error:
        raise ApiError(400, str(error), param="words" if body.text is None else "text") from error


def describe_writer(name: str, lm: LanguageModel) -> dict[str, Any]:
    """Return what a client needs to know of a language model."""
    return {"name": name, "model": f"{lm.order}-grams" if isinstance(lm, NGramLM) else "network"}
