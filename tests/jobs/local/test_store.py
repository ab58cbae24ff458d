"""Records of the engine: whole or not at all through kills, and names and damage that reach no further."""

import json
import os
import resource
import signal
import time
from datetime import datetime
from multiprocessing import get_context

import pytest
from helpers.kills import every_kill, in_a_process, killed_at, leftovers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fastmaker.local import processes
from fastmaker.local.client import SageMaker
from fastmaker.local.errors import ClientError
from fastmaker.local.store import DamagedRecord, Store, now

SHAPE = {"value": int, "time": datetime, "description": {"status": str}, "list": [{"port": int}]}


def record(value: int = 0) -> dict:
    return {"value": value, "time": now(), "description": {"status": "x"}, "list": [{"port": 1}]}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "home", "things", SHAPE)


NAMES = st.sampled_from(("one", "two", "three"))
STEPS = st.integers(1, 150)


class Records(RuleBasedStateMachine):
    """A store beside a dict, some operations killed at some line."""

    def __init__(self):
        super().__init__()
        self.model: dict[str, int] = {}
        self.value = 0

    @initialize()
    def make(self):
        import tempfile
        from pathlib import Path

        self.home = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.home.name), "things", SHAPE)

    def teardown(self):
        self.home.cleanup()

    def _new(self) -> int:
        self.value += 1
        return self.value

    def _found(self, name: str) -> int | None:
        try:
            return self.store.read(name)["value"]
        except KeyError:
            return None

    @rule(name=NAMES)
    def create(self, name):
        value = self._new()
        if name in self.model:
            with pytest.raises(FileExistsError):
                self.store.create(name, record(value))
        else:
            directory = self.store.create(name, record(value))
            (directory / "log").write_text("text")
            self.model[name] = value

    @rule(name=NAMES)
    def change(self, name):
        value = self._new()
        if name in self.model:
            with self.store.changing(name) as found:
                found["value"] = value
            self.model[name] = value
        else:
            with pytest.raises(KeyError), self.store.changing(name):
                pass

    @rule(name=NAMES)
    def delete(self, name):
        if name in self.model:
            self.store.delete(name)
            del self.model[name]
        else:
            with pytest.raises(KeyError):
                self.store.delete(name)

    @rule(name=NAMES, step=STEPS)
    def create_killed(self, name, step):
        if name not in self.model:
            value = self._new()
            killed = killed_at(step, lambda: self.store.create(name, record(value)))
            self._becomes(name, (value,) if not killed else (None, value))

    @rule(name=NAMES, step=STEPS)
    def change_killed(self, name, step):
        if name in self.model:
            value = self._new()

            def change():
                with self.store.changing(name) as found:
                    found["value"] = value

            killed = killed_at(step, change)
            self._becomes(name, (value,) if not killed else (self.model[name], value))

    @rule(name=NAMES, step=STEPS)
    def delete_killed(self, name, step):
        if name in self.model:
            killed = killed_at(step, lambda: self.store.delete(name))
            self._becomes(name, (None,) if not killed else (None, self.model[name]))

    def _becomes(self, name, possible):
        found = self._found(name)
        assert found in possible
        self.model.pop(name, None)
        if found is not None:
            self.model[name] = found

    @invariant()
    def what_is_listed_is_what_there_is(self):
        assert self.store.names() == sorted(self.model)
        assert {name: self.store.read(name)["value"] for name in self.store.names()} == self.model

    @rule()
    def nothing_is_left_by_those_that_were_killed(self):
        self.store.create("last", record())
        self.store.delete("last")
        assert leftovers(self.store.folder) == []


RARE = (HealthCheck.too_slow, HealthCheck.filter_too_much)
Records.TestCase.settings = settings(
    max_examples=8, stateful_step_count=15, deadline=None, derandomize=True, suppress_health_check=RARE
)
TestRecords = Records.TestCase


STRIDES = [7, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("operation", ["create", "change", "delete"])
def test_a_kill_at_any_line_leaves_a_whole_record_or_none_and_the_name_is_free(store, operation, stride):
    def run():
        if operation == "create":
            store.create("name", record(2))
        elif operation == "delete":
            store.delete("name")
        else:
            with store.changing("name") as found:
                found["value"] = 2

    def prepare():
        if "name" in store.names():
            store.delete("name")
        if operation != "create":
            (store.create("name", record(1)) / "log").write_text("text")

    prepare()
    kills = 0
    for _ in every_kill(run, stride):
        kills += 1
        listed = store.names()
        assert listed in ([], ["name"])
        if operation == "change":
            assert listed
        for name in listed:
            assert store.read(name)["value"] in (1, 2)
        prepare()
    assert kills * stride > 50
    print(f"{kills} kills")
    store.create("last", record())
    store.delete("last")
    assert leftovers(store.folder) == []


NOT_NAMES = ["../../outside", "/etc", "", ".", "..", ".hidden", "a/b", "a/../b", "a\0b", None, 5]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_no_name_leads_out_of_the_folder(store, name):
    outside = store.folder.parent.parent / "outside"
    outside.mkdir()
    (outside / "record.json").write_text(json.dumps({"value": 1}))
    store.create("name", record())
    for operation in (store.read, store.delete, store.directory, lambda name: store.create(name, record())):
        with pytest.raises(KeyError):
            operation(name)
    with pytest.raises(KeyError), store.changing(name):
        pass
    assert (outside / "record.json").exists()
    assert store.names() == ["name"]


@pytest.mark.parametrize("kind", ["model", "endpoint_config", "endpoint", "training_job", "transform_job"])
def test_the_api_deletes_and_describes_nothing_outside(tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "record.json").write_text("{}")
    client = SageMaker("us-west-2", tmp_path / "home")
    argument = {"".join(word.title() for word in kind.split("_")) + "Name": "../../outside"}
    for verb in ("delete", "describe"):
        with pytest.raises(ClientError, match=r"regular expression pattern|Could not find"):
            getattr(client, f"{verb}_{kind}")(**argument)
    assert (outside / "record.json").exists()


def test_a_link_is_no_record_and_nothing_follows_one(store, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "record.json").write_text("{}")
    (target / "precious").write_text("mine")
    own = store.create("own", record())
    (own / "inside").symlink_to(target)
    (store.folder / "link").symlink_to(target)
    assert store.names() == ["own"]
    with pytest.raises(KeyError):
        store.delete("link")
    store.create("link", record())  # a link blocks no name
    for name in ("link", "own"):
        store.delete(name)
    assert sorted(os.listdir(target)) == ["precious", "record.json"]
    assert store.names() == [] == leftovers(store.folder)


def test_a_scratch_directory_goes_after_its_process_and_no_sooner(store):
    in_a_process(store.scratch)
    kept = store.scratch()
    store.scratch()
    assert kept.is_dir()
    assert len(leftovers(store.folder)) == 2
    assert store.names() == []


def test_what_is_left_of_a_record_of_an_earlier_version_blocks_no_name(store):
    for name, contents in (("empty", ()), ("log", ("supervisor.log",)), ("locked", (".lock", "1/model"))):
        for content in contents or ("",):
            file = store.folder / name / content
            (file if not content else file.parent).mkdir(parents=True, exist_ok=True)
            if content:
                file.write_text("text")
        assert store.names() == []
        store.create(name, record())
        assert store.read(name)["value"] == 0
        store.delete(name)


def test_of_names_that_differ_by_case_alone_one_is_created_however_many_try_at_once(tmp_path):
    home, names = tmp_path / "home", ["name", "Name", "NAME"]
    for _ in range(10):
        store, children = Store(home, "kind", ignore_case=True), []
        for name in names:
            if not (pid := os.fork()):
                status = 1
                try:
                    store.create(name, record())
                    status = 0
                except FileExistsError:
                    status = 2
                finally:
                    os._exit(status)
            children.append(pid)
        statuses = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
        assert statuses == [0, 2, 2]
        [name] = store.names()
        store.delete(name)


WHOLE = json.dumps({"value": 1, "time": {"$time": "2026-01-01T00:00:00+00:00"}, "description": {"status": ""}})
DAMAGED = {
    "empty": "",
    "cut": WHOLE[:30],
    "list": "[]",
    "number": "1",
    "binary": b"\x00\xff\xfe",
    "lacks": WHOLE,
    "deep": "[" * 100_000,
    "type": WHOLE.replace("}}", '}, "list": {}}').replace('"value": 1', '"value": true'),
    "element": WHOLE[:-1] + ', "list": [1]}',
    "time": WHOLE.replace("2026-01-01T00:00:00+00:00", "yesterday"),
    "zone": WHOLE.replace("+00:00", ""),
    "terabyte": None,
    "folder": None,
    "pipe": None,
    "link": None,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_listed_and_named_and_can_be_deleted(store, tmp_path, kind):
    store.create("good", record())
    file = store.create("bad", record()) / "record.json"
    file.unlink()
    match kind:
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "terabyte":
            file.touch()
            os.truncate(file, 2**40)
        case "link":
            (tmp_path / "elsewhere.json").write_text(WHOLE)
            file.symlink_to(tmp_path / "elsewhere.json")
        case _:
            text = DAMAGED[kind]
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert store.names() == ["bad", "good"]
    with pytest.raises(DamagedRecord, match=str(file)):
        store.read("bad")
    with pytest.raises(DamagedRecord), store.changing("bad"):
        pass
    with pytest.raises(FileExistsError):
        store.create("bad", record())
    store.delete("bad")
    assert store.names() == ["good"]


@pytest.mark.parametrize("kind", ["model", "endpoint_config", "endpoint", "training_job", "transform_job"])
def test_a_damaged_record_is_in_the_apis_list_and_the_api_deletes_it(tmp_path, kind):
    client = SageMaker("us-west-2", tmp_path / "home")
    store = getattr(client, f"{kind}s")
    store.create("bad", {"description": []})
    prefix = "".join(word.title() for word in kind.split("_"))
    (answer,) = (value for value in getattr(client, f"list_{kind}s")().values() if isinstance(value, list))
    assert [summary[f"{prefix}Name"] for summary in answer] == ["bad"]
    getattr(client, f"delete_{kind}")(**{f"{prefix}Name": "bad"})
    assert store.names() == []


def test_records_are_listed_read_and_deleted_where_nothing_can_be_written(store):
    for name in ("one", "two", "three"):
        (store.create(name, record()) / "log").write_text("text")

    def without_space():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        assert store.names() == ["one", "three", "two"]
        with pytest.raises(OSError, match="too large"), store.changing("one") as found:
            found["value"] = 5
        assert store.read("one")["value"] == 0
        with pytest.raises(OSError, match="too large"):
            store.create("four", record())
        store.delete("two")
        assert store.names() == ["one", "three"]

    in_a_process(without_space)
    assert leftovers(store.folder) == []
    assert sorted(os.listdir(store.folder)) == ["one", "three"]


def test_a_list_passes_over_what_is_deleted_meanwhile(tmp_path):
    client = SageMaker("us-west-2", tmp_path / "home")

    def churn():
        for _ in range(40):
            client.create_model(ModelName="fleeting", PrimaryContainer={"Image": "x"})
            client.delete_model(ModelName="fleeting")

    client.create_model(ModelName="steady", PrimaryContainer={"Image": "x"})
    other = get_context("fork").Process(target=churn)
    other.start()
    while other.is_alive():
        assert "steady" in [model["ModelName"] for model in client.list_models()["Models"]]
    other.join()
    assert other.exitcode == 0


def _compete(store: Store, number: int) -> None:
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            store.create("name", {**record(number), "again": number})
        except FileExistsError:
            for name in store.names():
                try:
                    found = store.read(name)
                    assert found["value"] == found["again"]
                    if found["value"] == number:
                        store.delete(name)
                except KeyError:
                    pass


def test_processes_that_create_and_delete_one_name_never_see_another_error(store):
    competing = [get_context("fork").Process(target=_compete, args=(store, number)) for number in range(4)]
    for process in competing:
        process.start()
    for process in competing:
        process.join()
    assert [process.exitcode for process in competing] == [0] * 4


def test_who_waits_for_the_lock_of_a_deleted_record_does_not_change_the_next_one(store):
    store.create("name", record(1))

    def change():
        try:
            with store.changing("name") as found:
                found["value"] += 100
        except KeyError:
            os._exit(3)

    with store.changing("name"):
        waiting = get_context("fork").Process(target=change)
        waiting.start()
        time.sleep(0.3)
        os.rename(store.directory("name"), store.folder / ".deleted-by-a-test")
        store.create("name", record(2))
        os.rename(store.directory("name"), store.folder / ".new-by-a-test")
    waiting.join()
    assert waiting.exitcode == 3


def test_a_change_that_changes_nothing_writes_nothing(store):
    file = store.create("name", record()) / "record.json"
    before = file.stat().st_ino
    with store.changing("name"):
        pass
    assert file.stat().st_ino == before


def test_an_identity_is_that_of_one_process_alone():
    me = processes.identity()
    assert processes.lives(me)
    assert processes.find(me).pid == os.getpid()
    for other in ({**me, "started": me["started"] + 1}, {**me, "boot": "another"}, {**me, "pid": True}, {}, None, [1]):
        assert not processes.lives(other)
        assert processes.find(other) is None
