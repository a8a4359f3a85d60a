"""External data that is not a plain file in the model's folder, or does not match the tensor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from hostile.table import Refused, in_memory, saved, text, with_initializer
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper

FLOAT = TensorProto.FLOAT
Prepare = Callable[[Path], object]


def tensor(location: str = "w.bin", data_type: int = FLOAT, **entries: object) -> TensorProto:
    """Two floats, or elements of another type, in another file."""
    proto = TensorProto(data_type=data_type, dims=[2], data_location=TensorProto.EXTERNAL, name="w")
    for k, value in {"location": location, **entries}.items():
        proto.external_data.add(key=k, value=str(value))
    return proto


def external(location: str = "w.bin", **entries: object) -> ModelProto:
    return with_initializer(tensor(location, **entries))


def weights(folder: Path, size: int = 8) -> None:
    (folder / "w.bin").write_bytes(b"\0" * size)


def outside(folder: Path) -> None:
    """A file that the model may not read, next to its folder."""
    weights(folder.parent)


def in_folder(model: ModelProto, prepare: Prepare = weights) -> Callable[[Path], Path]:
    """The model in a folder that ``prepare`` has filled."""

    def build(folder: Path) -> Path:
        inner = folder / "in"
        inner.mkdir()
        prepare(inner)
        return saved(inner, model)

    return build


def symlink(folder: Path) -> None:
    outside(folder)
    (folder / "w.bin").symlink_to("../w.bin")


def symlink_inside(folder: Path) -> None:
    (folder / "real.bin").write_bytes(b"\0" * 8)
    (folder / "w.bin").symlink_to("real.bin")


def dangling(folder: Path) -> None:
    (folder / "w.bin").symlink_to("gone")


def linked_folder(folder: Path) -> None:
    outside(folder)
    (folder / "sub").symlink_to("..")


def hard_link(folder: Path) -> None:
    outside(folder)
    os.link(folder.parent / "w.bin", folder / "w.bin")


def unix_socket(folder: Path) -> None:
    at = os.getcwd()
    os.chdir(folder)  # The path of a socket may have a hundred characters.
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("w.bin")
    finally:
        os.chdir(at)


def device(folder: Path) -> None:
    """A link to a device, because only root can create a device."""
    (folder / "w.bin").symlink_to("/dev/zero")


def cache(folder: Path, target: str = "../../blobs/0123") -> Path:
    """A Hugging Face cache with a model and its data, which are links to blobs."""
    repository = folder / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs" / "0123").write_bytes(b"\0" * 8)
    (repository / "blobs" / "4567").write_bytes(external().SerializeToString())
    (snapshot / "model.onnx").symlink_to("../../blobs/4567")
    (snapshot / "w.bin").symlink_to(target)
    return snapshot / "model.onnx"


def other_repository(folder: Path) -> Path:
    """A link in a cache to another repository's blob."""
    other = folder / "models--org--secret" / "blobs"
    other.mkdir(parents=True)
    (other / "0123").write_bytes(b"\0" * 8)
    return cache(folder, "../../../models--org--secret/blobs/0123")


def linked_blob(folder: Path) -> Path:
    """A blob that is a link out of the cache."""
    path = cache(folder)
    weights(folder)
    blob = folder / "models--org--name" / "blobs" / "0123"
    blob.unlink()
    blob.symlink_to(folder / "w.bin")
    return path


def outside_cache(folder: Path) -> Path:
    """A model outside of a cache with a link into it."""
    cache(folder)
    (folder / "w.bin").symlink_to("models--org--name/blobs/0123")
    return saved(folder, external())


def through_folder(folder: Path) -> Path:
    """A model outside of a cache that names a file in it by way of a linked folder."""
    cache(folder)
    (folder / "sub").symlink_to("models--org--name/snapshots/abc")
    return saved(folder, external("sub/w.bin"))


def twice(name: str) -> ModelProto:
    model = external()
    entry = StringStringEntryProto(key=name, value="w.bin" if name == "location" else "0")
    model.graph.initializer[0].external_data.extend([entry, entry])
    return model


def both() -> ModelProto:
    model = external()
    model.graph.initializer[0].raw_data = b"12345678"
    return model


def in_constant() -> ModelProto:
    model = text()
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="value", type=4).t.CopyFrom(tensor("../w.bin"))
    model.graph.node.insert(0, node)
    return model


def in_list() -> ModelProto:
    """In a list of tensors of a foreign op."""
    model = text(opsets='"": 17, "other": 1')
    node = helper.make_node("Op", ["x"], ["z"], domain="other")
    node.attribute.add(name="all", type=9).tensors.append(tensor("../w.bin"))
    model.graph.node.append(node)
    return model


def in_sparse(part: str) -> ModelProto:
    model = text()
    proto = model.graph.sparse_initializer.add(dims=[4])
    proto.values.CopyFrom(helper.make_tensor("w", FLOAT, [2], [1.0, 2.0]))
    proto.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [2], [1, 2]))
    place = "../w.bin"
    getattr(proto, part).CopyFrom(tensor(place, FLOAT if part == "values" else TensorProto.INT64))
    return model


def in_sparse_constant() -> ModelProto:
    model = text()
    node = helper.make_node("Constant", [], ["c"])
    proto = node.attribute.add(name="sparse_value", type=11).sparse_tensor
    proto.CopyFrom(in_sparse("values").graph.sparse_initializer[0])
    model.graph.node.insert(0, node)
    return model


def in_subgraph() -> ModelProto:
    model = text(
        """(bool c, float[2] x) => (float[2] y) {
            y = If (c) <then_branch = t () => (float[2] a) { a = Identity (x) },
                        else_branch = e () => (float[2] b) { b = Add (x, w) }>
        }"""
    )
    branch = next(a for a in model.graph.node[0].attribute if a.name == "else_branch")
    branch.g.initializer.append(tensor("../w.bin"))
    return model


def in_function() -> ModelProto:
    model = text("(float[2] x) => (float[2] y) { y = local.f (x) }", '"": 17, "local": 1')
    function = model.functions.add(name="f", domain="local", input=["a"], output=["b"])
    function.opset_import.add(version=17)
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="value", type=4).t.CopyFrom(tensor("../w.bin"))
    function.node.extend([node, helper.make_node("Add", ["a", "c"], ["b"])])
    return model


EXTERNAL = [
    Refused("of a model in memory", in_memory(external()), "tensor 'w': external data 'w.bin' needs the model's folder, but the model was given in memory: give its path"),
    Refused("strings", in_folder(external(data_type=TensorProto.STRING)), "tensor 'w': external data 'w.bin': strings cannot be external"),
    Refused("missing", in_folder(external("gone.bin")), "tensor 'w': external data 'gone.bin': no such file; it must be in {folder}/in"),
    Refused("an empty name", in_folder(external("")), "tensor 'w': external data '' must be a relative path inside the model's folder"),
    Refused("the folder itself", in_folder(external(".")), "tensor 'w': external data '.' must be a relative path inside the model's folder"),
    Refused("a folder", in_folder(external(), lambda f: (f / "w.bin").mkdir()), "tensor 'w': external data 'w.bin' is a folder, not a regular file"),
    Refused("out of the folder", in_folder(external("../w.bin"), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("out of the folder and in again", in_folder(external("../in/w.bin")), "tensor 'w': external data '../in/w.bin' must be a relative path inside the model's folder"),
    Refused("out of the folder from a folder in it", in_folder(external("sub/../../w.bin"), outside), "tensor 'w': external data 'sub/../../w.bin' must be a relative path inside the model's folder"),
    Refused("absolute", in_folder(external("/etc/hostname")), "tensor 'w': external data '/etc/hostname' must be a relative path inside the model's folder"),
    Refused("absolute on Windows", in_folder(external("C:\\w.bin")), "tensor 'w': external data 'C:\\\\w.bin' must be a relative path inside the model's folder"),
    Refused("a share on Windows", in_folder(external("\\\\host\\share\\w.bin")), "tensor 'w': external data '\\\\\\\\host\\\\share\\\\w.bin' must be a relative path inside the model's folder"),
    Refused("out of the folder on Windows", in_folder(external("..\\w.bin")), "tensor 'w': external data '..\\\\w.bin' must be a relative path inside the model's folder"),
    Refused("a null byte", in_folder(external("w.bin\0.png")), "tensor 'w': external data 'w.bin\\x00.png' has a null byte in its name"),
    Refused("a name too long for a file", in_folder(external("w" * 5000)), "tensor 'w': external data 'wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww…': File name too long"),
    Refused("a link out of the folder", in_folder(external(), symlink), "tensor 'w': external data 'w.bin' is a symbolic link, or in a linked folder: replace it with the file"),
    Refused("a link inside the folder", in_folder(external(), symlink_inside), "tensor 'w': external data 'w.bin' is a symbolic link, or in a linked folder: replace it with the file"),
    Refused("a link to nothing", in_folder(external(), dangling), "tensor 'w': external data 'w.bin' is a symbolic link, or in a linked folder: replace it with the file"),
    Refused("in a linked folder", in_folder(external("sub/w.bin"), linked_folder), "tensor 'w': external data 'sub/w.bin' is a symbolic link, or in a linked folder: replace it with the file"),
    Refused("a file as a folder", in_folder(external("w.bin/w.bin")), "tensor 'w': external data 'w.bin/w.bin' is a symbolic link, or in a linked folder: replace it with the file"),
    Refused("a hard link", in_folder(external(), hard_link), "tensor 'w': external data 'w.bin' has another hard link: replace it with a copy of the file"),
    Refused("a pipe", in_folder(external(), lambda f: os.mkfifo(f / "w.bin")), "tensor 'w': external data 'w.bin' is a pipe, not a regular file"),
    Refused("a socket", in_folder(external(), unix_socket), "tensor 'w': external data 'w.bin' is a socket, not a regular file"),
    Refused("a link to a device", in_folder(external(), device), "tensor 'w': external data 'w.bin' is a symbolic link, or in a linked folder: replace it with the file"),
    Refused("the model itself", in_folder(external("model.onnx")), "tensor 'w': external data 'model.onnx' is the model file itself"),
    Refused("too short", in_folder(external(), lambda f: weights(f, 4)), "tensor 'w': external data 'w.bin': bytes 0 to 8 of a file of 4 do not contain f32[2] (8 bytes)"),
    Refused("an empty file", in_folder(external(), lambda f: weights(f, 0)), "tensor 'w': external data 'w.bin': bytes 0 to 8 of a file of 0 do not contain f32[2] (8 bytes)"),
    Refused("an offset past the end", in_folder(external(offset=4)), "tensor 'w': external data 'w.bin': bytes 4 to 12 of a file of 8 do not contain f32[2] (8 bytes)"),
    Refused("a negative offset", in_folder(external(offset=-4)), "tensor 'w': external data 'w.bin': bytes -4 to 4 of a file of 8 do not contain f32[2] (8 bytes)"),
    Refused("an offset of 2^63 - 1", in_folder(external(offset=2**63 - 1)), "tensor 'w': external data 'w.bin': bytes 9223372036854775807 to 9223372036854775815 of a file of 8 do not contain f32[2] (8 bytes)"),
    Refused("an offset past 64 bits", in_folder(external(offset=2**64)), "tensor 'w': external data 'w.bin': offset and length must be integers, not '18446744073709551616'"),
    Refused("an offset of a million digits", in_folder(external(offset="9" * 1_000_000)), "tensor 'w': external data 'w.bin': offset and length must be integers, not '9999999999999999999999999999999999999999'"),
    Refused("an offset that is not a number", in_folder(external(offset="x")), "tensor 'w': external data 'w.bin': offset and length must be integers, not 'x'"),
    Refused("an offset in hexadecimal", in_folder(external(offset="0x4")), "tensor 'w': external data 'w.bin': offset and length must be integers, not '0x4'"),
    Refused("a length of terabytes", in_folder(external(length=1 << 40)), "tensor 'w': external data 'w.bin': bytes 0 to 1099511627776 of a file of 8 do not contain f32[2] (8 bytes)"),
    Refused("a wrong length", in_folder(external(length=4)), "tensor 'w': external data 'w.bin': bytes 0 to 4 of a file of 8 do not contain f32[2] (8 bytes)"),
    Refused("a negative length", in_folder(external(length=-8)), "tensor 'w': external data 'w.bin': bytes 0 to -8 of a file of 8 do not contain f32[2] (8 bytes)"),
    Refused("a fractional length", in_folder(external(length="8.0")), "tensor 'w': external data 'w.bin': offset and length must be integers, not '8.0'"),
    Refused("an unknown key", in_folder(external(basepath="/etc")), "tensor 'w': external data 'w.bin' has the unknown key 'basepath' (known: location, offset, length, checksum)"),
    Refused("a key twice", in_folder(twice("offset")), "tensor 'w': external data 'w.bin' has the key 'offset' twice"),
    Refused("a location twice", in_folder(twice("location")), "tensor 'w': external data 'w.bin' has the key 'location' twice"),
    Refused("a wrong checksum", in_folder(external(checksum="00" * 20)), "tensor 'w': external data 'w.bin': its SHA-1 does not match the checksum in the model"),
    Refused("data in the model too", in_folder(both()), "tensor 'w': external data 'w.bin': the tensor also has data in raw_data"),
    Refused("in a Constant", in_folder(in_constant(), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("in a list of tensors", in_folder(in_list(), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("in sparse values", in_folder(in_sparse("values"), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("in sparse indices", in_folder(in_sparse("indices"), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("in a sparse Constant", in_folder(in_sparse_constant(), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("in a subgraph", in_folder(in_subgraph(), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("in a function", in_folder(in_function(), outside), "tensor 'w': external data '../w.bin' must be a relative path inside the model's folder"),
    Refused("a link of the Hugging Face cache, not allowed", cache, "tensor 'w': external data 'w.bin' is a link of the Hugging Face cache: allow them with --allow-hf-cache (allow_hf_cache=True)"),
    Refused("a link to another repository of the cache", other_repository, "tensor 'w': external data 'w.bin' is a symbolic link, or in a linked folder: replace it with the file", allow_hf_cache=True),
    Refused("a linked blob of the cache", linked_blob, "tensor 'w': external data 'w.bin': Too many levels of symbolic links", allow_hf_cache=True),
    Refused("a link into the cache from outside", outside_cache, "tensor 'w': external data 'w.bin' is a symbolic link, or in a linked folder: replace it with the file", allow_hf_cache=True),
    Refused("a linked folder into the cache", through_folder, "tensor 'w': external data 'sub/w.bin' is a symbolic link, or in a linked folder: replace it with the file", allow_hf_cache=True),
    Refused("a link outside the cache, with links allowed", in_folder(external(), symlink), "tensor 'w': external data 'w.bin' is a symbolic link, or in a linked folder: replace it with the file", allow_hf_cache=True),
]  # fmt: skip
