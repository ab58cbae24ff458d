"""What ``torch.export`` makes of a network, and which layer it is about where it makes nothing."""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

FIXED_BATCH = re.compile(r"Constraints violated|specialized it to be a constant|inferred to be a constant")
STORED = re.compile(r"attrs? were created|Node arity mismatch|was assigned during export")
BLOCKS = {
    "wrap_with_set_grad_enabled": 1,
    "wrap_with_autocast": 4,
}  # torch's operators, and which argument is the block


class CaptureError(ValueError):
    """A network that cannot be kept as a graph; the message is one line, and names the layer if it is known."""


def check_answers(network: nn.Module, example: torch.Tensor) -> None:
    """Raise CaptureError, which names the layer, if `network` gives no answer for `example`."""
    entered, remove = follow(network)
    try:
        with torch.no_grad():
            network(example.clone())
    except Exception as error:  # whatever the network's own code raises
        wide = next((name for name, p in network.named_parameters() if p.dtype == torch.float64), None)
        if wide is not None:
            raise CaptureError(
                f"its {wide} is float64, and a Learner's images are float32; learn.model.float() makes it float32"
            ) from None
        where = f"its layer {entered[-1]}" if entered else "it"
        raise CaptureError(f"{where} fails: {one_line(error)}") from None
    finally:
        remove()


def export(network: nn.Module, example: torch.Tensor, any_size: bool) -> Any:
    """Return torch's ExportedProgram. Raises CaptureError, which names the layer."""
    from torch.export import Dim, export

    sizes = {2: Dim.AUTO, 3: Dim.AUTO} if any_size else {}
    before = _kept(network)
    entered, remove = follow(network)
    try:
        with torch.no_grad():
            program = export(network, (example,), dynamic_shapes=({0: Dim.DYNAMIC, **sizes},), strict=False)
    except Exception as error:  # whatever the network's own code raises
        remove()
        layer = entered[-1] if entered else _layer_with_fixed_batch(network, example)
        where = f"its layer {layer} " if layer else "it "
        raise CaptureError(_cause(network, example, before, error) or _not_followed(where, error)) from None
    finally:
        remove()
    _inline(program.graph_module)
    return program


def _not_followed(where: str, error: Exception) -> str:
    """Return why torch.export raised `error`, in one line."""
    if FIXED_BATCH.search(str(error)):
        return f"{where}computes with the number of images in a batch as a constant; that number has to be free"
    return f"{where}cannot be followed by torch.export: {one_line(error)}"


def _cause(network: nn.Module, example: torch.Tensor, before: dict[str, Any], error: Exception) -> str | None:
    """Return what `network` itself shows of the reason why it could not be exported, None if that is nothing."""
    with contextlib.suppress(Exception), torch.no_grad():
        network(example)
    after = _kept(network)
    changed = next((name for name in after if after[name] != before.get(name)), None)
    if changed is None or not STORED.search(str(error)):
        return None
    hint = "" if changed in before else f", or set self.{changed.rpartition('.')[2]} = None in __init__"
    return (
        f"its forward stores a result on the network, as self.{changed}, which torch.export refuses: remove that{hint}"
    )


def _kept(network: nn.Module) -> dict[str, Any]:
    """Return the attributes of all layers by their names, as what shows that they change: identities."""
    kept = {}
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or isinstance(value, (bool, nn.Module)):
                continue
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
            kept[f"{prefix}.{name}".lstrip(".")] = (id(value), [id(part) for part in parts])
    return kept


def _inline(module: Any) -> None:
    """Put the calls of each block that only switches gradients or autocast in its place. Raises CaptureError.

    What a graph is run under has no gradients, and no autocast.
    """
    for node in list(module.graph.nodes):
        if (kind := str(node.target)) not in BLOCKS:
            continue
        if kind == "wrap_with_autocast" and node.args[2]:
            raise CaptureError(
                f"its layer {layer(node)} computes under torch.autocast for {node.args[0]}, in"
                f" {str(node.args[1]).removeprefix('torch.')}; a graph computes as its weights are, in float32"
            )
        body, *inputs = node.args[BLOCKS[kind] :]
        block = getattr(module, body.target)
        _inline(block)
        placeholders = [one for one in block.graph.nodes if one.op == "placeholder"]
        with module.graph.inserting_before(node):
            results = module.graph.graph_copy(block.graph, dict(zip(placeholders, inputs, strict=True)))
        for user in list(node.users):  # each takes one of the results
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)


def follow(network: nn.Module) -> tuple[list[str], Callable[[], None]]:
    """Return a list that always holds the layers that are being computed, and a function that ends that."""
    entered: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            shown = words(name, module)
            handles.append(module.register_forward_pre_hook(lambda *_, shown=shown: entered.append(shown)))
            handles.append(module.register_forward_hook(lambda *_: entered.pop() and None))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return entered, remove


def words(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else f"it, a {type(module).__name__},"


def _layer_with_fixed_batch(network: nn.Module, example: torch.Tensor) -> str | None:
    """Return the first layer whose calls hold the number of images as a constant, None if there is none."""
    try:
        with torch.no_grad():
            programs = [torch.export.export(network, (example[:1].repeat(n, 1, 1, 1),), strict=False) for n in (2, 3)]
    except Exception:
        return None
    calls = [[node for node in program.graph.nodes if node.op == "call_function"] for program in programs]
    different = [one for one, other in zip(*calls, strict=False) if str(one.args) != str(other.args)]
    fixed = [node for node in calls[0] if len(node.args) > 1 and str(node.args[1]).startswith("[2,")]
    return next(map(layer, different + fixed), None)


def layer(node: Any) -> str:
    """Return the layer that makes the call `node`: its name and class."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "forward"
    name, kind = stack[-1]
    return f"{name or 'forward'} ({str(kind).rpartition('.')[2]})"


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
