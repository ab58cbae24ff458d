"""Training in bfloat16 and float16: the device's choice, what stays float32, the same bits on resuming."""

import threading

import pytest
import torch

from fastmaker import bundle
from fastmaker.training import arguments, callbacks, checkpoint, data, from_learner, learner, precision, schedule

pytestmark = pytest.mark.training
CPU = torch.device("cpu")


class Killed(BaseException):
    pass


def new_learner(photos):
    from fastai.vision.all import set_seed

    set_seed(5)
    samples = data.read(photos)
    dls = data.dataloaders(samples, "RGB", (32, 32), "crop", batch_size=8, augment=True, workers=0)
    learn = learner.create(dls, samples, FINE_TUNED, pretrained=False)
    learn.add_cb(callbacks.MetricLog())
    return learn


FINE_TUNED = arguments.parse_args(["--train", "photos", "--arch", "resnet18", "--epochs", "1"])


def fit(learn, kind, *cbs, state=None):
    place = (state["epoch"], state["batch"]) if state else (0, 0)
    mixed = precision.callbacks(kind, CPU, state and state["scaler"])
    with learn.no_bar(), learn.no_logging(), learn.added_cbs([callbacks.Position(3, *place), *mixed, *cbs]):
        schedule.fit(learn, schedule.plan(FINE_TUNED, 0.01), *place)  # of the head, and of the whole network
    return learn


def saving(folder, state=None):
    return callbacks.SaveCheckpoints(folder, {}, threading.Event(), state)


def interrupt(epochs, batches):
    from fastai.vision.all import Callback

    class Interrupt(Callback):
        order = 81  # after SaveCheckpoints

        def after_batch(self):
            self.learn.save_checkpoints.last = 0  # it is due after every batch
            if self.training and (self.learn.position.done, self.learn.position.batch) == (epochs, batches):
                raise Killed

    return Interrupt()


def same(first, second):
    states = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture(scope="module")
def trained(photos):
    return {kind: fit(new_learner(photos), kind) for kind in ("float32", "bf16", "fp16")}


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_run_in_halves_gives_the_same_bits_again_and_when_it_resumes(photos, tmp_path, trained, kind):
    assert not same(trained[kind], trained["float32"])
    with pytest.raises(Killed):
        fit(new_learner(photos), kind, saving(tmp_path), interrupt(1, 2))
    _, state, _ = checkpoint.newest(tmp_path)
    assert (state["epoch"], state["batch"], bool(state["scaler"])) == (1, 2, kind == "fp16")
    learn = new_learner(photos)
    checkpoint.restore(learn, state)
    assert same(fit(learn, kind, saving(tmp_path, state), state=state), trained[kind])


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_weights_metrics_and_the_bundle_are_float32(trained, tmp_path, kind):
    learn = trained[kind]
    assert {tensor.dtype for tensor in learn.model.parameters()} == {torch.float32}
    with learn.no_bar(), learn.no_logging():
        assert list(learn.recorder.values[-1])[1:] == pytest.approx(list(learn.validate()), abs=1e-6)
        from_learner.save_bundle(learn, tmp_path)  # which compares its answers with those of the Learner
    assert bundle.load(tmp_path)


def test_the_scaler_goes_on_where_the_checkpoint_left_it(photos, tmp_path):
    [mixed] = precision.callbacks("fp16", CPU)
    assert mixed.scaling.state_dict()["scale"] == 2**16
    learn = new_learner(photos)
    mixed.scaling.load_state_dict(mixed.scaling.state_dict() | {"scale": 2.0**40})  # gradients overflow, and halve it
    with learn.no_bar(), learn.no_logging(), learn.added_cbs([callbacks.Position(3), mixed, saving(tmp_path)]):
        learn.fit_one_cycle(1, 0.01)
    state = checkpoint.newest(tmp_path)[1]["scaler"]
    assert state == mixed.scaling.state_dict()
    assert state["scale"] < 2**40
    assert learner.is_finite(learn.model)
    assert precision.callbacks("fp16", CPU, state)[0].scaling.state_dict() == state


class Gpu:
    """What torch says of a device that is not here."""

    def __init__(self, monkeypatch, capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")


@pytest.mark.parametrize(
    ("capability", "given", "chosen"),
    [
        ((6, 1), "auto", "float32"),
        ((7, 0), "auto", "fp16"),
        ((7, 5), "auto", "fp16"),
        ((8, 0), "auto", "bf16"),
        ((9, 0), "auto", "bf16"),
        ((9, 0), "fp16", "fp16"),
        ((7, 5), "float32", "float32"),
        ((7, 5), "bf16", None),
    ],
)
def test_a_gpu_computes_in_what_it_does_well(monkeypatch, capability, given, chosen):
    Gpu(monkeypatch, capability)
    if chosen:
        assert precision.resolve(given, (224, 224), torch.device("cuda")) == chosen
    else:
        with pytest.raises(precision.PrecisionError, match="--precision bf16: Tesla T4 has no bfloat16; use fp16 or"):
            precision.resolve(given, (224, 224), torch.device("cuda"))


@pytest.mark.parametrize(
    ("has", "size", "given", "chosen"),
    [
        (True, (128, 128), "auto", "bf16"),
        (True, (28, 28), "auto", "float32"),
        (True, (128, 32), "auto", "float32"),
        (False, (128, 128), "auto", "float32"),
        (False, (128, 128), "bf16", "bf16"),
        (True, (128, 128), "float32", "float32"),
    ],
)
def test_a_processor_computes_in_bfloat16_if_it_has_it_and_images_are_not_small(monkeypatch, has, size, given, chosen):
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: has)
    assert precision.resolve(given, size, CPU) == chosen


def test_a_run_resumes_in_its_own_precision_only():
    of_the_run = [
        arguments.of_the_run(arguments.parse_args(["--train", "digits", "--precision", kind]))
        for kind in ("bf16", "fp16")
    ]
    assert [options["precision"] for options in of_the_run] == ["bf16", "fp16"]
