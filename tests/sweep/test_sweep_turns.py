"""Who carries which trial out: claims, turns, and what becomes of a trial whose worker is gone. Nothing is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_sweep import METHOD, RATE, begun

from expunge.errors import StoppedError, UsageError
from expunge.sweep import claims as claims_module
from expunge.sweep.claims import SECONDS_TO_GIVE_UP, Claims, Owner
from expunge.sweep.plan import read_sweep
from expunge.sweep.run import look
from expunge.sweep.study import JOURNAL, Turn, open_study, take_turn, tell
from expunge.sweep.worker import disk_is_full

pytest.importorskip("optuna", minversion="5")


def test_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(tmp_path)
    assert not claims.held("trial-0000")
    with claims.take("trial-0000"):
        assert claims.held("trial-0000")
        with pytest.raises(UsageError, match="another process"), claims.take("trial-0000"):
            raise AssertionError
    assert not claims.held("trial-0000")
    assert not claims.orphaned("trial-0000")
    # Killed: the folder says who had it, and nobody holds the lock.
    folder = tmp_path / "claims/trial-0001"
    folder.mkdir(parents=True)
    me = Owner.me()
    (folder / "owner.json").write_text(json.dumps(me._replace(started=me.started - 100)._asdict()))
    assert not claims.held("trial-0001"), "another process had this number before"
    assert claims.orphaned("trial-0001")
    (folder / "owner.json").write_text(json.dumps(me._asdict()))
    assert claims.held("trial-0001"), "a disk without locks: the process is there"
    clock = [0.0]
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: clock[0])
    (folder / "owner.json").write_text(json.dumps(me._replace(host="elsewhere")._asdict()))
    seen = [(0, "1", True), (100, "1", True), (119, "2", True), (238, "2", True), (240, "2", False)]
    for seconds, beat, held in seen:
        clock[0] = float(seconds)
        (folder / "beats").write_text(beat)
        assert claims.held("trial-0001") == held, seconds
    assert SECONDS_TO_GIVE_UP == 120
    (folder / "owner.json").write_text('{"host": "el')
    assert not claims.held("trial-0001"), "killed while it was written"


def end(turn: Turn, value: float, state: str = "finished") -> None:
    sweep = read_sweep(Path("sweep"))
    values = {"forget.extraction_strength": value, "retain.probability": 0.5}
    ended = {"state": state, "values": values} if state == "finished" else {"state": state, "reason": "not finite"}
    tell(sweep, turn, ended, {})
    turn.claim.close()


def test_turns(here: Path) -> None:
    sweep = begun(here, RATE, METHOD, trials=6)
    claims = Claims(sweep.root)
    first, second = take_turn(sweep, claims), take_turn(sweep, claims)
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (0, 1)
    assert first.params != second.params
    end(first, 0.5)
    second.claim.close()
    again = take_turn(sweep, claims)
    assert again is not None
    assert (again.number, again.params) == (1, second.params), "what was given back is taken up first, as it was"
    end(again, 0.4)
    rest = []
    while turn := take_turn(sweep, claims):
        rest.append(turn)
    assert [turn.number for turn in rest] == [2, 3, 4, 5]
    assert take_turn(sweep, claims) is None
    for turn in rest:
        end(turn, 0.1 * turn.number)
    found = look(sweep.root)
    assert found.finished
    assert found.best is not None
    assert found.best.number == 2
    assert [trial.params for trial in found.trials][:2] == [first.params, second.params]


def test_proposals_do_not_depend_on_interruptions(here: Path) -> None:
    params = {}
    for name, interrupted in (("a", False), ("b", True)):
        sweep = begun(here, RATE, METHOD, trials=8)
        for number in range(8):
            turn = take_turn(sweep, Claims(sweep.root))
            assert turn is not None
            if interrupted and number % 3 == 1:
                turn.claim.close()
                turn = take_turn(read_sweep(sweep.root), Claims(sweep.root))
                assert turn is not None
            end(turn, turn.params["train.learning_rate"])
        params[name] = [trial.params for trial in look(sweep.root).trials]
        sweep.root.rename(here / name)
    assert params["a"] == params["b"]
    assert len({str(one) for one in params["a"]}) == 8


def test_few_combinations_are_tried_once_each(here: Path) -> None:
    sweep = begun(here, METHOD, "train.max_steps=int(2, 4)", trials=50)
    assert sweep.trials == 6
    assert sweep.exhaustive
    open_turns = [take_turn(sweep, Claims(sweep.root)) for _ in range(3)]
    for turn in open_turns:
        assert turn is not None
        end(turn, 0.5)
    while turn := take_turn(sweep, Claims(sweep.root)):
        end(turn, 0.5)
    found = look(sweep.root)
    assert found.finished
    assert len({tuple(trial.params.values()) for trial in found.trials}) == 6


def test_a_trial_that_keeps_killing_workers_fails(here: Path) -> None:
    sweep = begun(here, trials=1)
    for _ in range(3):
        turn = take_turn(sweep, Claims(sweep.root))
        assert turn is not None
        assert turn.number == 0
        folder = sweep.root / "claims/trial-0000"
        turn.claim.close()
        # What a process leaves that is killed.
        folder.mkdir(parents=True)
        (folder / "owner.json").write_text(json.dumps(Owner.me()._replace(started=0.0)._asdict()))
    assert take_turn(sweep, Claims(sweep.root)) is None
    (trial,) = look(sweep.root).trials
    assert (trial.state, trial.reason) == ("failed", "3 workers died over it, most often killed for memory")


def test_a_sweep_gives_up_when_most_trials_fail(here: Path) -> None:
    sweep = begun(here, trials=10)
    for state in ("finished", "finished", "failed", "failed", "pruned", "failed", "failed"):
        turn = take_turn(sweep, Claims(sweep.root))
        assert turn is not None
        end(turn, 0.5, state)
    with pytest.raises(StoppedError, match="4 of 7 trials failed; trial 6: not finite"):
        take_turn(sweep, Claims(sweep.root))


def test_half_a_line_at_the_end_of_the_journal_is_dropped(here: Path) -> None:
    sweep = begun(here, trials=3)
    turn = take_turn(sweep, Claims(sweep.root))
    assert turn is not None
    turn.claim.close()
    with (sweep.root / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 9, "wor')
    again = take_turn(sweep, Claims(sweep.root))
    assert again is not None
    assert again.params == turn.params
    end(again, 0.5)
    assert len(open_study(sweep).get_trials()) == 1


def test_a_full_disk_is_told_from_a_failed_trial() -> None:
    assert disk_is_full(OSError(28, os.strerror(28)))
    wrapped = StoppedError("the model could not be written")
    wrapped.__cause__ = RuntimeError("I/O error: No space left on device (os error 28)")
    assert disk_is_full(wrapped)
    assert not disk_is_full(StoppedError("step 3: loss is nan"))
