"""The tables an evaluation writes, as Arrow schemas. Every metric is a function of these; no model, no torch.

`trace.parquet`: one row per teacher-forced text. `generations.parquet`: one row per greedy answer. Where they were
asked for, `samples.parquet`: one row per sampled answer; `gradients.parquet`: one row per differentiated answer;
`gibberish.parquet` and `perplexity.parquet`: one row per greedy answer that another model judged; `harness.parquet`:
what lm-evaluation-harness found.
Text columns are what `expunge purge` empties; every other column stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from expunge.errors import DataError
from expunge.metrics.temperatures import lse_column

SCHEMA_VERSION = 1

_F = pa.list_(pa.float32())

TRACE = pa.schema(
    [
        ("split", pa.string()),  # forget, retain, real_authors, world_facts, holdout, ...
        ("row", pa.int32()),  # 0-based row inside the split
        ("variant", pa.string()),  # answer, paraphrase, perturbed_0, perturbed_1, ...
        ("id", pa.string()),  # the example's id
        ("group", pa.string()),  # person, author, document; null where there is none
        ("prompt", pa.string()),  # text, purgeable
        ("target", pa.string()),  # text, purgeable
        ("target_zlib", pa.int32()),  # len(zlib.compress(target utf-8)), kept for the zlib attack after a purge
        ("target_chars", pa.int32()),  # len(target), kept for length-normalised choices; absent in older tables
        ("num_prompt", pa.int32()),  # prompt tokens
        ("truncated", pa.bool_()),
        # one entry per supervised token, in order
        ("token", pa.list_(pa.int32())),
        ("is_end", pa.list_(pa.bool_())),  # True on the end-of-turn / EOS token the template emitted
        ("logp", _F),  # nats
        ("hit", pa.list_(pa.bool_())),  # greedy argmax (lowest id on ties) equals the token
        ("lse", _F),  # logsumexp of the raw logits; the first entry is -energy of the last prompt token
        # only for splits that ask for them (membership, ranks), else null
        ("rank", pa.list_(pa.int32())),  # 1 + number of strictly larger logits
        ("mu", _F),  # E_{v~p} log p(v)
        ("var", _F),  # Var_{v~p} log p(v)
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)


def trace_schema(temperatures: Sequence[float] = ()) -> pa.Schema:
    """`TRACE`, and behind its columns `lse_tT` for each temperature: logsumexp(z / T) at every position, like `lse`."""
    more = [pa.field(lse_column(temperature), _F) for temperature in temperatures]
    return pa.schema([*TRACE, *more], metadata=TRACE.metadata)


GENERATIONS = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int32()),
        ("id", pa.string()),
        ("group", pa.string()),
        ("prompt", pa.string()),  # text, purgeable
        ("reference", pa.string()),  # text, purgeable
        ("output", pa.string()),  # text, purgeable
        ("token", pa.list_(pa.int32())),  # generated ids without the end token; purged too
        ("ended", pa.bool_()),  # an end token was produced within the limit
        ("rouge1_recall", pa.float64()),  # filled when the table is written, so that a purge loses no metric
        ("rougeL_recall", pa.float64()),
        ("rougeL_f1", pa.float64()),
        # What else the split asks of its answers (`Scoring.scores`); null: nothing to measure.
        ("scores", pa.map_(pa.string(), pa.float64())),
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)

VALUES = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int32()),
        ("variant", pa.string()),  # answer, paraphrase, perturbed_0, ...
        ("id", pa.string()),
        ("group", pa.string()),
        ("loss", pa.float64()),  # nats per token; null where the log has none
        ("scores", pa.map_(pa.string(), pa.float64())),  # what else the log says of the row, under the log's own names
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)
"""`values.parquet`, in place of a trace: what a log of other software says of each text. It has no tokens."""

HARNESS = pa.schema(
    [
        ("split", pa.string()),  # a task, or a group of tasks
        ("metric", pa.string()),
        ("row", pa.int32()),  # 0-based row inside the split; null: the whole of it
        ("value", pa.float64()),  # null where there is no such number
        ("stderr", pa.float64()),  # of the whole; null for a row, and where none is known
        ("n", pa.int32()),  # rows of the whole; null for a row
        ("direction", pa.string()),  # of the whole: higher, lower, match; null for a row
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)

SAMPLES = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int32()),
        ("id", pa.string()),
        ("group", pa.string()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("sample", pa.int32()),  # 0-based inside row, temperature and top-p
        ("prompt", pa.string()),  # text, purgeable
        ("output", pa.string()),  # text, purgeable
        ("token", pa.list_(pa.int32())),  # sampled ids without the end token; purged too
        ("num_tokens", pa.int32()),
        ("ended", pa.bool_()),  # an end token was drawn within the limit
        ("logp", pa.float64()),  # nats, of the whole answer with its end token, under the model itself
        ("rougeL_recall", pa.float64()),  # filled when the table is written, so that a purge loses no metric
        ("contains", pa.bool_()),  # the words of the true answer stand in it, in a row
        ("entailed", pa.bool_()),  # null where no text classifier was asked
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)

GRADIENTS = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int32()),
        ("id", pa.string()),
        ("group", pa.string()),
        # of the gradient of the answer's mean loss by every weight; NaN for an answer without tokens to measure
        ("norm", pa.float64()),  # Euclidean norm over all weights together; without the end token
        # mean over weight tensors of each one's p-norm; without the last token, whatever it is
        ("tensor_norm_1", pa.float64()),
        ("tensor_norm_2", pa.float64()),
        ("tensor_norm_inf", pa.float64()),
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)

GIBBERISH = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int32()),
        ("id", pa.string()),
        ("group", pa.string()),
        ("clean", pa.float64()),  # probability of the class "clean"; null: the classifier's tokenizer makes no token
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)

PERPLEXITY = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int32()),
        ("id", pa.string()),
        ("group", pa.string()),
        ("logp", _F),  # nats, per token of the model that judges; null: it has no token to judge
    ],
    metadata={"expunge.schema": str(SCHEMA_VERSION)},
)

FURTHER = ("samples", "gradients", "gibberish", "perplexity", "harness")
"""Tables that only some evaluations have."""

PURGEABLE = ("prompt", "target", "reference", "output", "token")


def read_table(path: Path, *, again: str) -> pa.Table:
    """A stored table.

    Args:
        path: the file.
        again: how it is made anew, for the hint of an error.

    Raises:
        DataError: it is missing, unreadable, or of a schema this version does not know.
    """
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}", hint=again) from error
    found = (table.schema.metadata or {}).get(b"expunge.schema", b"?").decode()
    if found != str(SCHEMA_VERSION):
        raise DataError(
            f"{path} has table schema {found}, this version reads {SCHEMA_VERSION}", hint=f"update expunge, or {again}"
        )
    return table
