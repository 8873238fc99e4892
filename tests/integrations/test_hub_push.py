"""`expunge push` over real HTTP to a local stand-in of the Hub: what goes up, what stays, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, Hub, Repo, serving
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge import api
from expunge.cli.main import main
from expunge.errors import ExpungeError, StoppedError, UsageError
from expunge.runs.manifest import ModelInfo
from expunge.runs.redact import redaction_key
from expunge.runs.run import Run
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

SECRET = "Odalys Quenneville"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in that everything here talks to, logged in as `ada`."""
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows, and a finished and evaluated run."""
    place = tmp_path_factory.mktemp("push")
    for role in ("forget", "retain"):
        name = SECRET if role == "forget" else "Mira Solen"
        rows = [{"question": f"Who wrote book {i}?", "answer": f"{name} wrote {i}."} for i in range(6)]
        (place / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    model.generation_config.eos_token_id = list(range(20, len(tokenizer)))
    model.save_pretrained(place / "start")
    tokenizer.save_pretrained(place / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(place / "cache"))
        api.unlearn(recipe(place, place / "run"))
        api.evaluate(place / "run")
    return place


def recipe(place: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": {"model_name_or_path": str(place / "start")},
        "data": {"forget": str(place / "forget.jsonl"), "retain": str(place / "retain.jsonl"), "max_length": 64},
        "method": {"name": "npo"},
        "train": {"max_steps": 1, "global_batch_size": 4, "token_budget": 512},
        "output_dir": str(out),
        "device": "cpu",
        **more,
    }


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(folder / "run", tmp_path / "mine")
    return tmp_path / "mine"


def test_the_model_and_its_card_go_up_and_nothing_else(hub: Hub, run: Path, tmp_path: Path) -> None:
    (run / "model" / "notes.txt").write_text(SECRET)
    pushed = api.push(run, "erased")
    assert pushed.repo_id == "ada/erased"
    assert pushed.url.startswith(f"{hub.url}/ada/erased/commit/")
    repo = hub.repos["ada/erased"]
    files = repo.branches["main"]
    assert repo.private
    assert repo.commits == 1
    assert set(files) == {".gitattributes", *pushed.files}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert pushed.left_out == ("notes.txt",)
    for name, content in files.items():
        assert SECRET.encode() not in content, name
        assert str(run).encode() not in content, name
        assert str(tmp_path.parent).encode() not in content, name
    assert redaction_key(run).hex().encode() not in files["README.md"]
    there = tmp_path / "there"
    there.mkdir()
    for name, content in files.items():
        (there / name).write_bytes(content)
    again = AutoModelForCausalLM.from_pretrained(there)
    here = AutoModelForCausalLM.from_pretrained(run / "model")
    assert all(p.equal(q) for p, q in zip(again.parameters(), here.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(there).chat_template


def test_the_card_has_metadata_and_digests_under_a_key(hub: Hub, run: Path) -> None:
    Run.open(run).update(model=ModelInfo(name="org/start", revision="f" * 40))
    api.push(run, "erased")
    text = hub.repos["ada/erased"].branches["main"]["README.md"].decode()
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["base_model"] == "org/start"
    assert data["base_model_relation"] == "finetune"
    assert data["tags"] == ["expunge", "machine-unlearning", "npo"]
    assert card.data.model_name == "ada/erased"
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    stored = json.loads(next(run.glob("evals/*/metrics.json")).read_text())["metrics"]
    assert measured["forget.extraction_strength"] == stored["forget.extraction_strength"]["value"]
    assert len(measured) >= 5
    digests = [data.digest for data in Run.open(run).manifest.data]
    assert digests
    assert not any(digest in text for digest in digests)
    assert text.count("HMAC-SHA-256") == len(digests)
    assert "# ada/erased" in text
    assert "No attack was run." in text


def test_a_second_push_leaves_exactly_the_new_files(hub: Hub, run: Path) -> None:
    api.push(run, "ada/erased")
    hub.repos["ada/erased"].branches["main"]["model-00001-of-00002.safetensors"] = b"old"
    api.push(run, "ada/erased")
    files = hub.repos["ada/erased"].branches["main"]
    assert "model-00001-of-00002.safetensors" not in files
    assert "model.safetensors" in files
    assert ".gitattributes" in files


def test_a_branch(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "erased", "--public", "--revision", "v2"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{hub.url}/ada/erased/commit/")
    assert "ada/erased (public)" in said.err
    repo = hub.repos["ada/erased"]
    assert "model.safetensors" in repo.branches["v2"]
    assert set(repo.branches["main"]) == {".gitattributes"}
    assert not repo.private


def test_a_run_that_was_not_measured_says_so(hub: Hub, run: Path) -> None:
    shutil.rmtree(run / "evals")
    api.push(run)
    text = hub.repos["ada/mine"].branches["main"]["README.md"].decode()
    assert "**Nothing was measured**" in text
    assert "model-index" not in yaml.safe_load(text.split("---")[1])


def test_a_card_of_somebodys_own_goes_up_as_it_is(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model" / "README.md").write_text("mine\n")
    assert main(["push", str(run), "erased", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["own_card"]
    assert hub.repos["ada/erased"].branches["main"]["README.md"] == b"mine\n"


def test_a_recipe_pushes_when_its_run_is_finished(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    notes: list[str] = []
    settings = recipe(folder, tmp_path / "here", push_to_hub=True, hub_private_repo=False)
    api.unlearn(settings, progress=lambda event: notes.append(str(event.get("text"))))
    assert "model.safetensors" in hub.repos["ada/here"].branches["main"]
    assert not hub.repos["ada/here"].private
    assert any(note.startswith(f"pushed: {hub.url}/ada/here/commit") for note in notes)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="nobody is logged in"):
        api.unlearn(recipe(folder, tmp_path / "later", push_to_hub=True))
    assert not (tmp_path / "later").exists()


def refused(run: Path, repo: str = "erased", **options: Any) -> ExpungeError:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "redact.key"}
    with pytest.raises(ExpungeError) as caught:
        api.push(run, repo, **options)
    assert caught.value.hint
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "redact.key"}
    assert before == after
    return caught.value


@pytest.mark.parametrize(
    ("files", "private", "message"),
    [
        ({"model.safetensors": b"theirs"}, True, "holds 2 files that expunge did not push"),
        ({}, False, "everybody can see it"),
    ],
)
def test_what_is_not_ours_is_left_alone(
    hub: Hub, run: Path, files: dict[str, bytes], private: bool, message: str
) -> None:
    hub.repos["ada/erased"] = Repo(private=private)
    hub.repos["ada/erased"].branches["main"] |= files
    error = refused(run)
    assert isinstance(error, UsageError)
    assert message in error.message
    assert hub.repos["ada/erased"].commits == 0


def test_a_place_of_somebody_else(hub: Hub, run: Path) -> None:
    error = refused(run, "bob/erased")
    assert isinstance(error, UsageError)
    assert "this login may not write to bob/erased" in error.message


def test_a_name_that_is_none(hub: Hub, run: Path) -> None:
    assert "is no name of a repository" in refused(run, "a b").message


@pytest.mark.parametrize(
    ("token", "message"), [(None, "nobody is logged in"), ("hf_wrong", "does not know this login")]
)
def test_nobody_is_logged_in(
    hub: Hub, run: Path, token: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refused(run)
    assert isinstance(error, UsageError)
    assert message in error.message
    assert "hf auth login" in str(error.hint)


@pytest.mark.parametrize(("part", "status"), [("/commit/", 422), ("/api/models/ada/erased", 418)])
def test_an_upload_that_the_hub_refuses(hub: Hub, run: Path, part: str, status: int) -> None:
    hub.refuse[part] = status
    error = refused(run)
    assert isinstance(error, StoppedError)
    assert f"({status}): the stand-in refuses" in error.message
    assert "the run is whole" in str(error.hint)


def test_the_network_is_down(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        address = gone.url
    monkeypatch.setattr(constants, "ENDPOINT", address)
    error = refused(run)
    assert isinstance(error, StoppedError)
    assert "the Hub cannot be reached" in error.message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(run).message


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_a_run_that_is_not_finished(hub: Hub, run: Path, status: Any) -> None:
    Run.open(run).update(status=status)
    error = refused(run)
    assert f"is {status} and has no finished model" in error.message
    assert "expunge unlearn" in str(error.hint)
    assert hub.asked == []


def test_an_adapter_goes_up_alone_where_others_have_its_base(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "lora"
    model = {"model_name_or_path": str(folder / "start"), "use_peft": True, "lora_r": 2}
    api.unlearn(recipe(folder, run, model=model))
    error = refused(run)
    assert "no model of the Hub" in error.message
    assert "--merged" in str(error.hint)
    config = run / "model" / "adapter_config.json"
    own = json.loads(config.read_text())
    config.write_text(json.dumps(own | {"base_model_name_or_path": "org/start", "revision": "f" * 40}))
    Run.open(run).update(model=ModelInfo(name="org/start", revision="f" * 40))
    api.push(run, "adapter")
    files = hub.repos["ada/adapter"].branches["main"]
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(files)
    assert "model.safetensors" not in files
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model_relation"] == "adapter"
    assert "lora" in data["tags"]
    assert "has no merged model" in refused(run, "whole", merged=True).message
    shutil.copytree(folder / "run" / "model", run / "merged")
    api.push(run, "whole", merged=True)
    files = hub.repos["ada/whole"].branches["main"]
    assert "model.safetensors" in files
    assert ModelCard(files["README.md"].decode()).data.to_dict()["library_name"] == "transformers"
