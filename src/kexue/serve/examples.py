"""Answers in the OpenAPI schema: an example of each, and the schema derived from it."""

from __future__ import annotations

from typing import Any

from kexue.serve import errors

Responses = dict[int | str, dict[str, Any]]
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def answers(example: Any, media_type: str = "application/json") -> Responses:
    """Return the OpenAPI entry of a successful answer.

    Args:
        example: the answer. A key that ends in ``?`` may be missing; a tuple holds alternatives, of which the first is
            the example; the items of a list are like the first, and ``{}`` is any object.
        media_type: content type of the answer.

    >>> answers({"id": "17", "percentile?": (99.1, None)})[200]["content"]["application/json"]["example"]
    {'id': '17', 'percentile': 99.1}
    """
    return {200: {"content": {media_type: _content(example)}}}


def refusals(*statuses: int, openai: bool = True, tei: bool = False) -> Responses:
    """Return the OpenAPI entries of errors.

    Args:
        statuses: HTTP statuses; all that exist if none is named.
        openai: include OpenAI's format.
        tei: include TEI's format.
    """
    texts = {
        400: ("Empty or malformed.", "query is empty."),
        401: ("No valid key.", "A valid API key is needed: Authorization: Bearer KEY."),
        403: ("The key, the page or the server may not do this.", "This key may read, not write."),
        404: ("No model or index of this name.", "no index 'fag'; there are: faq."),
        413: ("Too large.", "The request is larger than 33,554,432 bytes."),
        414: ("The address is too long.", "The address of the request has 70,000 bytes; at most 61,440 are allowed."),
        421: (
            "The request names another host.",
            "The host name evil.example is not accepted; --allow-host evil.example allows it.",
        ),
        422: ("Cannot be tokenised.", "query is not valid Unicode: it holds half a surrogate pair."),
        424: ("The model or index failed.", "the model failed on this input: RuntimeError."),
        429: ("Busy; see Retry-After.", "The server is busy; try again later."),
        431: ("Headers too large.", "The request has 120 headers of 8,000 bytes; at most 100 of 61,440 are allowed."),
        500: ("The index is damaged.", "faq is damaged: the vector with key 2 (id '2') is not what was written."),
        503: ("Not ready, or the index was replaced.", "The server is not ready."),
        507: ("The disk is full.", "The disk of the server is full; nothing was written."),
    }
    entries: Responses = {}
    for status in statuses or texts:
        description, message = texts[status]
        shapes = [
            errors.error_body(status, message, tei=shape) for shape in (True, False) if (tei if shape else openai)
        ]
        for shape in shapes:
            if isinstance(shape["error"], dict):
                shape["error"]["param"] = ("query", None) if status in (400, 422) else (None, "query")
        entries[status] = {"description": description, "content": {"application/json": _content(tuple(shapes))}}
    return entries


def _content(example: Any) -> dict[str, Any]:
    """Return schema and example of an answer."""
    return {"schema": _schema(example), "example": _example(example)}


def _schema(example: Any) -> dict[str, Any]:
    """Return the JSON schema of an example."""
    if isinstance(example, tuple):
        return {"anyOf": [_schema(one) for one in example]}
    if isinstance(example, dict):
        properties = {key.removesuffix("?"): _schema(value) for key, value in example.items()}
        return {"type": "object", "properties": properties, "required": [key for key in example if key[-1] != "?"]}
    if isinstance(example, list):
        return {"type": "array", "items": _schema(example[0])}
    return {"type": "null" if example is None else _TYPES[type(example)]}


def _example(example: Any) -> Any:
    """Return an example without its marks for optional keys and alternatives."""
    if isinstance(example, tuple):
        return _example(example[0])
    if isinstance(example, dict):
        return {key.removesuffix("?"): _example(value) for key, value in example.items()}
    return [_example(one) for one in example] if isinstance(example, list) else example


_WARNINGS = ["unknown field 'topk' was ignored."]
_USAGE = {"prompt_tokens": 8, "total_tokens": 8}
_EXPLANATION = {
    "distance": 0.21,
    "kind": "wrd",
    "pairs": [{"source": "refund", "target": "money", "mass": 0.5, "cost": 0.3, "contribution": 0.15}],
}
_RERANKED = {
    "id": "0f8fad5bd9cb469fa16570867728950e",
    "model": "wrd",
    "results": [{"index": 0, "relevance_score": 0.83, "document?": {"text": "refunds take five days"}}],
    "meta": {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": 17},
    },
    "usage": _USAGE,
    "warnings?": _WARNINGS,
}

HEALTH = answers({"status": "ok"})
READY = answers({"status": "ready"})
READY |= {
    503: {"description": "Starting or stopping.", "content": {"application/json": _content({"status": "not ready"})}}
}
METRICS = answers('kexue_requests_total{endpoint="/v1/search",outcome="ok"} 1.0', "text/plain") | refusals(401)
EMBEDDINGS = answers(
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": ([0.012, -0.034], "ppFEPJZDC70=")}],
        "model": "minilm",
        "usage": _USAGE,
        "warnings?": _WARNINGS,
    }
)
_MODEL = {
    "id": "minilm",
    "object": "model",
    "created": 1767225600,
    "owned_by": "kexue",
    "dimensions": 384,
    "max_length": 256,
    "whitening": ({"beta": 1.0, "gamma": 0.0, "rank": 384}, None),
    "shortened_by": "whitening",
}
MODELS = answers({"object": "list", "data": [_MODEL]})
MODEL = answers(_MODEL)
RERANK = answers(_RERANKED)
RERANK_OR_TEI = answers((_RERANKED, [{"index": 0, "score": 0.83, "text?": "refunds take five days"}]))
EMBED = answers([[0.012, -0.034]])
SIMILARITY = answers([0.71, 0.08])
INFO = answers(
    {
        "model_id": "sentence-transformers/all-MiniLM-L6-v2",
        "model_sha": "e6b0614d4496084e",
        "model_dtype": "float32",
        "served_model_name": "minilm",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 1024,
        "max_input_length": 256,
        "max_batch_tokens": 16384,
        "max_batch_requests": (None, 4),
        "max_client_batch_size": 2048,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": "0.1.0",
        "sha": (None, "0cd8865"),
        "docker_label": (None, "latest"),
    }
)
SEARCH = answers(
    {
        "mode": "hybrid",
        "match": ("good", None),
        "results": [
            {
                "id": "17",
                "index": "faq",
                "score": 0.83,
                "percentile": (99.7, None),
                "chance": (0.01, None),
                "passage?": {"start": 0, "end": 23, "text": "Refunds take five days.", "location": ("page 3", None)},
                "document": {"text": "Refunds take five days.", "metadata": ({}, None)},
                "probability?": {"value": 0.9, "low": 0.84, "high": 0.95},
                "explanation?": _EXPLANATION,
            }
        ],
        "warnings": _WARNINGS,
        "usage": _USAGE,
        "timings": {"encode": 0.004, "search": 0.001, "rerank": 0.0, "total": 0.005},
    }
)
INDEXES = answers(
    {
        "indexes": [{"name": "faq", "documents": 512}],
        "runs?": [{"name": "digits", "model": "diffusion", "classes": ["0"]}],
        "extractors?": [
            {
                "name": "films",
                "model": "dgcnn",
                "predicates": ["作者"],
                "head_threshold": 0.5,
                "tail_threshold": 0.4,
            }
        ],
        "writers?": [{"name": "ngram-zh", "model": "4-grams"}],
    }
)
EXTRACT = answers(
    {
        "results": [
            [
                {
                    "subject": "边城",
                    "predicate": "作者",
                    "object": "沈从文",
                    "subject_span": [1, 3],
                    "object_span": [8, 11],
                    "score": 0.93,
                }
            ]
        ],
        "usage": _USAGE,
        "timings": {"extract": 0.012, "total": 0.013},
        "warnings?": _WARNINGS,
    }
)
SAMPLING = answers(
    {
        "step": 10,
        "steps": 1000,
        "gamma": 0.8,
        "sentences": ["广州的美食很多。"],
        "log_rho": [-31.4],
        "acceptance": 0.21,
    },
    "text/event-stream",
)
DIFFUSION = answers(
    {"step": 1, "steps": 50, "time": 0.98, "image": "iVBORw0KGgo...", "estimate": "iVBORw0KGgo..."}, "text/event-stream"
)
INDEX = answers(
    {
        "index": "faq",
        "documents": 512,
        "dims": (384, None),
        "model": {},
        "whitening": ({}, None),
        "calibration": ({}, None),
        "hubness": ({}, None),
        "dehub": ("csls", None),
        "approx": "auto",
        "passages": ({"mode": "auto", "tokens": (None, 128), "overlap": 0, "split": 12, "vectors": 571}, None),
        "bytes": 1048576,
        "format_version": 3,
        "created": "2026-01-01T00:00:00+00:00",
        "updated": "2026-01-02T00:00:00+00:00",
        "drift": (0.02, None),
    }
)
DOCUMENTS = answers(
    {
        "documents": [{"id": "17", "text": "Refunds take five days.", "metadata": {}}],
        "next": ("17", None),
        "warnings?": _WARNINGS,
    }
)
UPSERT = answers(
    {
        "added": 1,
        "updated": 0,
        "skipped": 0,
        "truncated": 0,
        "ids": ["17"],
        "documents": 513,
        "warnings?": _WARNINGS,
    }
)
DELETE = answers({"deleted": 1, "missing": ["18"], "documents": 512, "warnings?": _WARNINGS})
COMPARE = answers(
    {
        "texts": ["refund", "money back"],
        "cosine": 0.74,
        "distance": (0.21, None),
        "similarity": 0.79,
        "kind": "wrd",
        "percentile": (99.7, None),
        "explanation": (_EXPLANATION, None),
        "figure": (None, "compare.svg"),
        "warnings?": _WARNINGS,
    }
)
HUBNESS = answers(
    {
        "n": 512,
        "documents": 512,
        "k": 10,
        "k_skewness": 1.2,
        "robinhood": 0.3,
        "gini": 0.4,
        "atkinson": 0.2,
        "antihub_occurrence": 0.01,
        "hub_occurrence": 0.1,
        "max": 41,
        "top20_share": 0.35,
        "top": [{"id": "17", "count": 41, "text": "Refunds take five days."}],
        "metric": "cosine",
        "histogram": [[0, 5], [1, 12]],
    }
)
MAP = answers(
    {
        "points": [{"id": "17", "x": 0.31, "y": -0.12, "text": "Refunds take five days."}],
        "sample": 512,
        "documents": 512,
        "explained": 0.14,
    }
)
WHITENING = answers(
    {
        "rows": [
            {
                "beta": 1.0,
                "gamma": 0.0,
                "k": 64,
                "score": 0.61,
                "low": 0.56,
                "high": 0.66,
                "metric": "MRR@10 of finding a text's second half by its first",
                "memory_bytes": 131072,
            }
        ],
        "decided": True,
        "texts": 340,
        "sample": 512,
        "documents": 512,
        "chance": 0.009,
    }
)
