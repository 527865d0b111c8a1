import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from viditq_jax import files
from viditq_jax.checkpoint import Artifact, ArtifactError, read_facts, restore, save
from viditq_jax.net import Net, abstract, initialize
from viditq_jax.nn.embed import Mlp
from viditq_jax.nn.linear import NOTHING, After


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coded:
    """A weight object with leaves of several types, as quantized weights have."""

    codes: jax.Array
    scale: jax.Array

    def linear(self, x: jax.Array, bias: jax.Array | None, after: After = NOTHING) -> jax.Array:
        return after(x @ (self.codes * self.scale).T)


class Toy(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Mlp(width, 2 * width, rngs=rngs)])


def coded(net: Net) -> Net:
    def code(path: str, weight: jax.Array) -> Coded | jax.Array:
        return (
            Coded((weight * 100).astype(jnp.int8), jnp.ones((weight.shape[0], 1)))
            if "fc1" in path
            else weight
        )

    return net.map_weights(code)


@pytest.fixture
def net() -> Net:
    return coded(initialize(Toy, 8).astype(jnp.bfloat16))


@pytest.fixture
def artifact(net: Net, tmp_path: Path) -> Path:
    return save(
        Artifact({"model": "toy"}, {"denoiser": lambda: net}, {"tokenizer/a": b"abc"}), tmp_path / "toy"
    )


def target() -> Net:
    return jax.eval_shape(coded, abstract(Toy, 8).astype(jnp.bfloat16))


def test_a_round_trip_keeps_every_bit_and_every_type(net: Net, artifact: Path) -> None:
    loaded = restore(artifact, "denoiser", target())
    assert loaded.graphdef == net.graphdef
    assert jax.tree.structure(loaded) == jax.tree.structure(net)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(net), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_facts_and_files_come_back_verbatim(artifact: Path) -> None:
    facts = read_facts(artifact)
    assert facts["model"] == "toy"
    assert (artifact / "tokenizer/a").read_bytes() == b"abc"


def largest_file(artifact: Path) -> Path:
    return max((p for p in (artifact / "denoiser").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_one_flipped_byte_is_refused_by_name(artifact: Path) -> None:
    for file in [p for p in artifact.rglob("*") if p.is_file()]:
        original = file.read_bytes()
        flipped = bytearray(original)
        flipped[len(flipped) // 2] ^= 1
        file.write_bytes(bytes(flipped))
        with pytest.raises(ArtifactError, match=rf"{file.name} (was altered|is not valid)"):
            read_facts(artifact)
        file.write_bytes(original)
    assert read_facts(artifact)["model"] == "toy"


def test_truncated_missing_and_foreign_files_are_listed_together(artifact: Path) -> None:
    file = largest_file(artifact)
    file.write_bytes(file.read_bytes()[:-1])
    (artifact / "tokenizer/a").unlink()
    (artifact / "stray").write_text("x")
    with pytest.raises(ArtifactError, match="torn or altered") as error:
        read_facts(artifact)
    for part in (file.name, "tokenizer/a is missing", "stray does not belong"):
        assert part in str(error.value)


def test_another_format_version_is_refused(artifact: Path) -> None:
    facts = json.loads((artifact / "pipeline.json").read_text())
    (artifact / "pipeline.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(ArtifactError, match="format version 99"):
        read_facts(artifact)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"format": 1}', '{"format": 1, "files": {"a": 3}}', "[" * 100_000),
        '{"format": 1, "sha256": "", "files": {"a": {"bytes": 1e999, "sha256": ""}}}',
    ],
)
def test_broken_facts_are_refused(artifact: Path, text: str) -> None:
    (artifact / "pipeline.json").write_text(text)
    with pytest.raises(ArtifactError, match="not valid"):
        read_facts(artifact)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no pipeline\.json"):
        read_facts(tmp_path)


def test_another_model_is_refused_with_all_differences(artifact: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        restore(artifact, "denoiser", abstract(Toy, 16))
    text = str(error.value)
    assert "fc2/weight" in text
    assert "bfloat16[8, 16], expected float32[16, 32]" in text
    assert "codes" in text
    assert "is unexpected" in text


def test_an_existing_artifact_is_kept_unless_overwriting_is_asked_for(net: Net, artifact: Path) -> None:
    again = Artifact({"model": "other"}, {"denoiser": lambda: net})
    with pytest.raises(ArtifactError, match="exists already"):
        save(again, artifact)
    assert read_facts(artifact)["model"] == "toy"
    save(again, artifact, overwrite=True)
    assert read_facts(artifact)["model"] == "other"


def test_a_folder_that_is_no_artifact_is_never_overwritten(net: Net, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("keep")
    with pytest.raises(ArtifactError, match="not an artifact"):
        save(Artifact({}, {"denoiser": lambda: net}), tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious/file").read_text() == "keep"


def test_a_failure_while_writing_leaves_the_old_artifact_and_no_debris(artifact: Path) -> None:
    def full_disk() -> Net:
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        save(Artifact({"model": "new"}, {"denoiser": full_disk}), artifact, overwrite=True)
    assert read_facts(artifact)["model"] == "toy"
    assert [p.name for p in artifact.parent.iterdir()] == ["toy"]


def test_what_appears_while_an_artifact_is_written_is_kept(net: Net, artifact: Path, tmp_path: Path) -> None:
    """Another run may finish first; only `overwrite` replaces what it wrote."""

    def slow() -> Net:
        artifact.rename(tmp_path / "new")
        return net

    with pytest.raises(ArtifactError, match="could not be written"):
        save(Artifact({"model": "late"}, {"denoiser": slow}), tmp_path / "new")
    assert read_facts(tmp_path / "new")["model"] == "toy"


def test_the_old_artifact_is_set_back_if_the_new_one_does_not_get_its_name(
    net: Net, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)  # as on a system that cannot swap names
    with pytest.raises(ArtifactError, match="No space left"):
        save(Artifact({"model": "new"}, {"denoiser": lambda: net}), artifact, overwrite=True)
    assert read_facts(artifact)["model"] == "toy"
    assert [p.name for p in artifact.parent.iterdir()] == ["toy"]


def test_a_symbolic_link_hides_no_weights_from_the_check(artifact: Path, tmp_path: Path) -> None:
    """A linked folder is not listed, so its content could be anything, under a listing with a right hash."""
    (artifact / "denoiser").rename(tmp_path / "elsewhere")
    (artifact / "denoiser").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="denoiser is a symbolic link"):
        read_facts(artifact)


def test_a_part_without_its_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser/_METADATA").write_text("{}")
    for name in ("denoiser", "decoder"):
        with pytest.raises(ArtifactError, match=f"{name} is not a tree of arrays"):
            restore(tmp_path, name, target())


def test_debris_of_a_killed_run_does_not_disturb_the_next(net: Net, tmp_path: Path) -> None:
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial/half").write_text("x")
    save(Artifact({"model": "new"}, {"denoiser": lambda: net}), tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert read_facts(tmp_path / "new")["model"] == "new"
