"""`python -m tests.fuzz --count 50000 --seed 0`: prints the fates; `--case N` shows what one case does."""

import argparse
import asyncio
import traceback
from pathlib import Path

from engines import images
from tests.fuzz.mutate import Files
from tests.fuzz.run import WANTED, fuzz


def main() -> None:
    """Fuzz, or decode one case in this very process and show how that ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="one case, decoded without a decoder process")
    parser.add_argument("--save", type=Path, help="where to write that case's file")
    asked = parser.parse_args()
    if asked.case is not None:
        _show(asked.seed, asked.case, asked.save)
        return
    cases = range(asked.first, asked.first + asked.count)
    found = asyncio.run(
        fuzz(cases, asked.seed, tell=lambda done: None if done % 5000 else print(f"case {done}", flush=True))
    )
    for fate, count in found.fates.most_common():
        print(f"{count:8,}  {100 * count / asked.count:5.1f}%  {fate}")
    for fate, numbers in found.kept.items():
        print(f"{fate}: cases {', '.join(map(str, numbers[:20]))}")
    print(
        f"{asked.count:,} cases with seed {asked.seed} in {found.wall_s:.0f} s; the slowest took "
        f"{found.slowest_s:.2f} s (case {found.slowest_case}); peak memory of a child {found.peak_mb} MiB"
    )


def _show(seed: int, number: int, save: Path | None) -> None:
    case = Files(seed).case(number)
    print(f"case {number}: {case.seed}, {', '.join(case.changes)}, frame {case.frame}")
    if save:
        save.write_bytes(case.content)
    try:
        print(images.read(case.content, WANTED, frame=case.frame)[1:])
    except Exception:
        traceback.print_exc()


if __name__ == "__main__":
    main()
