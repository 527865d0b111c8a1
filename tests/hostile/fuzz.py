"""Fuzz the readers for minutes: python -m tests.hostile.fuzz --seconds 60 [--reader pickle ...]

Needs atheris (`pip install atheris`), which follows what an input reaches. Each reader is a process; one that
stops on a fault leaves the input in the folder that it names. What was found becomes a case of this folder.
"""

import argparse
import subprocess
import sys
from pathlib import Path

MOST_BYTES, MOST_SECONDS, MOST_MEGABYTES = 4096, 20, 8192


def main(arguments: list[str] | None = None) -> int:
    """Fuzz each reader in turn; the number of readers with faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each reader (default: %(default)s)")
    parser.add_argument("--reader", nargs="*", help="of which readers (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="for inputs (default: %(default)s)"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        fuzz(options.one, options.out, options.seconds)
    from tests.hostile.readers import READERS

    faulty = 0
    for reader in options.reader or READERS:
        command = [
            sys.executable,
            "-m",
            "tests.hostile.fuzz",
            "--one",
            reader,
            "--seconds",
            str(options.seconds),
        ]
        code = subprocess.run([*command, "--out", str(options.out)], check=False).returncode
        print(f"{reader}: {'no fault' if code == 0 else f'stopped with {code}'}", flush=True)
        faulty += code != 0
    return faulty


def fuzz(reader: str, out: Path, seconds: int) -> None:
    """One reader; does not return."""
    import atheris

    with atheris.instrument_imports(
        include=["converters", "viditq_jax.files", "viditq_jax.quant.recipe", "pickle"]
    ):
        from tests.hostile.readers import honest, read

    corpus = out / reader.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(honest(reader)):
        (corpus / f"honest-{i}").write_bytes(data)

    def once(data: bytes) -> None:
        read(reader, data)

    limits = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", f"-timeout={MOST_SECONDS}"]
    limits += [f"-rss_limit_mb={MOST_MEGABYTES}", f"-artifact_prefix={corpus}/fault-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
