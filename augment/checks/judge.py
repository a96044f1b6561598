"""All checks of one reply: scores, limits, the first reason to refuse, and their one mark.

A text belongs to all items that send the very same; a verdict belongs to one item, because what a
rewrite must keep and must not say differs between them. It is kept with a mark of the limits it was
made under, so that a run with other limits judges stored texts again and generates nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, final

from augment.checks import rewrite
from augment.checks import text as wording
from augment.checks.clean import clean_steps
from augment.checks.ecr import parse_ecr
from augment.checks.lengths import derive, parse_lengths
from augment.checks.rewrite import Forbidden, LeakRule, leaks
from augment.checks.tags import chain_faults, parse_chain
from augment.data.tokens import clip_token_counter
from augment.engines.reasoning import without_reasoning
from augment.files import digest
from augment.prompts import Prompt
from augment.records import Finish, Reply

#: Counts changes of the rules; texts judged by older ones are judged again by the next run.
RULES = 5


@final
@dataclass(frozen=True)
class Limits:
    """What is refused. A score above its limit is; scores are kept in any case.

    Attributes:
        language: ISO 639-1 code that texts must be in; empty for any. What a rewrite must keep
            is checked in English only.
        foreign: most that may speak against the language, 0 to 1.
        repetition: largest share of repeated words (see ``augment.checks.text``).
        compression: largest share of bytes that compression may save.
        truncation: 0.5 refuses texts that end in the middle of a phrase, 0.9 only those that
            reached the limit of new tokens, 0.3 also those without a full stop.
        filler: largest share of words that say nothing.
        slack: a text may be this much longer than its prompt's ``max_words``.
        leak: how rewrites are compared with the texts searched for (``augment.checks.rewrite``).
        keep: whether rewrites must keep negations and numbers, and questions stay questions.
        tokenizer: folder or name of the teacher's, which counts the tokens of a chain in tags;
            empty counts by CLIP's.
    """

    language: str = "en"
    foreign: float = 0.5
    repetition: float = 0.3
    compression: float = 0.7
    truncation: float = 0.5
    filler: float = 0.2
    slack: float = 1.0
    leak: LeakRule = "names"
    keep: bool = True
    tokenizer: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """For the record; without a tokenizer as it was before there was one."""
        told = asdict(self)
        return told if self.tokenizer else {k: v for k, v in told.items() if k != "tokenizer"}


DEFAULT_LIMITS = Limits()


@final
@dataclass(frozen=True)
class Verdict:
    """What the checks say of one reply.

    Attributes:
        text: the cleaned text.
        raw: what the model wrote, where cleaning changed more than outer blanks; else empty.
        rejected: the first reason to refuse it, ``""`` if there is none.
        scores: every score by the name of its check; a check that does not apply is absent.
        steps: what cleaning took off.
        lengths: the text at every length, for prompts of form ``lengths``; ``text`` is the dense
            one. A length that a check would refuse is derived from the dense one. For prompts of
            form ``ecr`` or ``tags`` the ``final`` text; ``text`` is what led to it and it.
    """

    text: str
    raw: str
    rejected: str
    scores: Mapping[str, float]
    steps: tuple[str, ...] = field(default=())
    lengths: Mapping[str, str] = field(default_factory=dict)


class _Finding(NamedTuple):
    """One check's score, and why it refuses the text; empty if it does not."""

    name: str
    score: float
    reason: str


def judge(
    reply: Reply,
    prompt: Prompt,
    original: str | None = None,
    forbidden: Forbidden | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Verdict:
    """Clean a reply and run every check that applies."""
    if prompt.kind == "transcript":
        # Others' words, in any language and form: scored as any text, refused for length alone. An
        # empty one says that nothing stands in the picture.
        text = without_reasoning(reply.text).strip()
        found = _wording(text, reply.finish, prompt.max_words, limits)
        kept = [one if one.name == "length" else one._replace(reason="") for one in found]
        return _verdict(reply, text, kept)
    text, steps = clean_steps(reply.text)
    lengths: dict[str, str] = {}
    findings: list[_Finding] = []
    parts: tuple[str, ...] = ()
    if prompt.form == "tags":
        chain, targets = parse_chain(reply.text), forbidden.texts if forbidden else ()
        text, lengths = chain.text, {"final": chain.answer}
        parts = (chain.reasoning, chain.answer)
        findings += (
            _Finding(*one) for one in chain_faults(chain, original, targets, limits.tokenizer)
        )
    elif prompt.form == "ecr":
        ecr = parse_ecr(reply.text)
        text, lengths = ecr.text, {"final": ecr.final}
        findings.append(_Finding("mended", len(ecr.mended), ecr.refused))
    elif prompt.form == "lengths":
        parsed = parse_lengths(reply.text)
        text = parsed.lengths["dense"]
        lengths = {
            length: derive(text, length) if check(part, limits=limits) else part
            for length, part in parsed.lengths.items()
        }
        findings.append(_Finding("derived_lengths", len(parsed.derived), ""))
    findings += _wording(text, reply.finish, prompt.max_words, limits, parts)
    if prompt.max_tokens is not None:
        number = clip_token_counter()(text)
        over = f"too long: {number} tokens, {prompt.max_tokens} allowed"
        findings.append(_Finding("tokens", number, over if number > prompt.max_tokens else ""))
    if prompt.keeps and original:
        findings += _rewriting(text, original, prompt, limits)
    if prompt.kind == "rewrite" and forbidden is not None and limits.leak != "off":
        told = leaks(text, original or "", forbidden, limits.leak)
        findings.append(_Finding("leak", float(len(told)), _quoted("leak", told)))
    return _verdict(reply, text, findings, steps=steps, lengths=lengths)


def _verdict(reply: Reply, text: str, findings: Sequence[_Finding], **more: Any) -> Verdict:
    return Verdict(
        text=text,
        raw=reply.text if text != reply.text.strip() else "",
        rejected=next((found.reason for found in findings if found.reason), ""),
        scores={found.name: round(found.score, 4) for found in findings},
        **more,
    )


def check(
    text: str,
    finish: Finish = "stop",
    max_words: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> str:
    """Why a cleaned text is refused on its own account, or ``""``."""
    found = _wording(text, finish, max_words, limits)
    return next((finding.reason for finding in found if finding.reason), "")


def _wording(
    text: str,
    finish: Finish,
    max_words: int | None,
    limits: Limits,
    parts: Sequence[str] = (),
) -> Iterator[_Finding]:
    # An answer says again what its reasoning said, and may refuse behind it: each is read alone.
    parts = parts or (text,)

    def finding(name: str, score: float, limit: float, reason: str) -> _Finding:
        return _Finding(name, score, reason if score > limit else "")

    number = len(text.split())
    yield finding("empty", wording.empty(text), 0.5, "empty")
    cut = wording.truncation(text, finish)
    reason = "reached the limit of new tokens" if cut == 1 else "ends in the middle of a phrase"
    yield finding("truncation", cut, limits.truncation, f"truncated: {reason}")
    yield finding("reasoning", wording.reasoning(text), 0.5, "reasoning")
    yield finding("refusal", max(map(wording.refusal, parts)), 0.5, "refusal")
    repeated = max(map(wording.repetition, parts))
    yield finding("repetition", repeated, limits.repetition, "repetition")
    packed = wording.compression(text)
    yield finding("compression", packed, limits.compression, "repetition: compresses too well")
    if limits.language:
        strange = wording.foreign(text, limits.language)
        yield finding("language", strange, limits.foreign, f"language: not {limits.language}")
    yield finding("filler", wording.filler(text), limits.filler, "filler")
    yield _Finding("words", number, "")
    if max_words is not None:
        reason = f"too long: {number} words, {max_words} asked for"
        yield finding("length", number / max_words, limits.slack, reason)


def _rewriting(text: str, original: str, prompt: Prompt, limits: Limits) -> Iterator[_Finding]:
    added = rewrite.added(text, original)
    most = prompt.max_added_words
    over = most is not None and added > most
    yield _Finding("added", added, f"too long: adds {added} words, {most} allowed" if over else "")
    if limits.language != "en":
        return
    for lost in (rewrite.lost_numbers, rewrite.lost_negations):
        name, gone = lost.__name__, lost(text, original)
        reason = _quoted(name.replace("_", " "), gone) if limits.keep else ""
        yield _Finding(name, len(gone), reason)
    done = rewrite.answered(text, original)
    reason = "answered: the question is answered" if done == 1 else "answered: no question any more"
    yield _Finding("answered", done, reason if done and limits.keep else "")


def _quoted(name: str, pieces: Sequence[str]) -> str:
    return f"{name}: {', '.join(pieces)}" if pieces else ""


def checks_of(limits: Limits, prompts: Iterable[Prompt]) -> dict[str, Any]:
    """All that verdicts depend on besides text and item, JSON-serialisable; saved with a run.

    Returns:
        ``rules``, ``limits``, and for every prompt in ``prompts`` its caps and its mark.
    """
    asked = {one.name: {**_caps(one), "mark": mark(limits, one)} for one in prompts}
    return {"rules": RULES, "limits": limits.settings, "prompts": asked}


#: Checks that go without saying, those of the first checkpoints. They stay what they are, whatever
#: the defaults become, so that fingerprints do.
UNSAID: Mapping[str, Any] = MappingProxyType(
    {
        "rules": 3,
        "language": "en",
        "foreign": 0.5,
        "repetition": 0.3,
        "compression": 0.7,
        "truncation": 0.5,
        "filler": 0.2,
        "slack": 1.0,
        "leak": "names",
        "keep": True,
    }
)


def said(checks: Mapping[str, Any]) -> dict[str, Any]:
    """In what checks differ from those that go without saying.

    Caps of prompts are not among them: they are part of the prompts' hashes, so of the recipe.

    Args:
        checks: of :func:`checks_of`; empty where an earlier version did not keep them.
    """
    made = {"rules": max(checks.get("rules", 0), UNSAID["rules"]), **checks.get("limits", {})}
    return {name: value for name, value in made.items() if value != UNSAID.get(name)}


@lru_cache(maxsize=64)
def mark(limits: Limits, prompt: Prompt) -> str:
    """Twelve hex digits over all that verdicts depend on besides text and item."""
    # A tokenizer counts in chains alone.
    told = limits if prompt.form == "tags" else replace(limits, tokenizer="")
    made = {"rules": RULES, "limits": told.settings, "kind": prompt.kind, **_caps(prompt)}
    return digest(made)[:12]


def _caps(prompt: Prompt) -> Mapping[str, Any]:
    caps: dict[str, Any] = {
        "max_words": prompt.max_words,
        "max_added_words": prompt.max_added_words,
        "keeps": prompt.keeps,
    }
    if prompt.form == "tags":
        caps["parts"] = 3  # are read apart; texts that were judged otherwise are judged again
    return caps if prompt.max_tokens is None else {**caps, "max_tokens": prompt.max_tokens}
