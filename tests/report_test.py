"""Tables say what the rows say, and the claims are tested on the right members."""

import csv
import math

import pytest

from sae_jax.report import reference
from sae_jax.report.figures import plot_panels
from sae_jax.report.tables import (
    comparison_table,
    interval_note,
    summary_table,
    write_csv,
    write_markdown,
)

SEEDS = (0, 1, 2)


def rows() -> list[dict]:
    """A sweep over the published grid whose every value is known."""
    return [
        {
            "d_sae": d_sae,
            "k": k,
            "seed": seed,
            "explained_variance": 0.9 + d_sae / 1e5 + seed / 1000,
            "fvu": 0.2 - d_sae / 1e5,
            "mse": 2.0,
            "dead_fraction": 0.001 * (200 - k) + 0.01 * seed,
            "published_rate": 0.1 + d_sae / 1e4,
            "published_rate_rarer_half": 0.25,
            "published_rate_supported": 0.02,
            "published_null": 0.09,
            "num_singletons": 10 + seed,
            "calibrated_rate_supported": 0.3,
            "calibrated_null": 0.001,
            "feature_stability": 0.5,
        }
        for k, sizes in reference.GRID.items()
        for d_sae in sizes
        for seed in SEEDS
    ]


def test_the_grid_has_what_was_published_and_what_was_asked():
    assert sum(len(sizes) for sizes in reference.GRID.values()) == 14
    assert all(d_sae in reference.GRID[k] for k, d_sae in reference.RESULTS)
    # SPEC-independent restatement of two published cells.
    assert reference.RESULTS[50, 512]["published_rate"] == pytest.approx(0.195, abs=5e-4)
    assert reference.RESULTS[75, 512]["published_rate"] == pytest.approx(0.192, abs=5e-4)


def test_arms_repeat_the_grid_and_seeds_may_vary_the_order():
    configs = reference.grid(2, ("none", "center"), vary_order=True)
    assert len(configs) == 2 * 14 * 2
    assert [c.normalize for c in configs] == ["none"] * 28 + ["center"] * 28
    assert all(config.data_seed == config.seed for config in configs)
    assert {config.data_seed for config in reference.grid(2)} == {None}


def test_csv_has_one_line_a_member(tmp_path):
    write_csv(rows(), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 14 * len(SEEDS)
    assert read[0]["k"] == "25"
    assert float(read[-1]["fvu"]) == pytest.approx(0.19)


def test_summary_gives_means_and_t_intervals():
    line = next(line for line in summary_table(rows()).splitlines() if "| 50 | 250 |" in line)
    # EV: 0.9025, 0.9035, 0.9045; sd 0.001; t(0.975, 2) = 4.3027; half width 4.3027 * sd / sqrt(3).
    half_width = 4.302653 * 0.1 / math.sqrt(3)
    assert f"| 90.35 ± {half_width:.2f} |" in line
    # Deaths 15, 16 and 17 %; singletons 10, 11 and 12: ten times the sd, in their units.
    assert f"| 16.0 ± {10 * half_width:.1f} |" in line
    assert f"| 11.0 ± {10 * half_width:.1f} |" in line


def test_one_seed_has_no_interval():
    table = summary_table([row for row in rows() if row["seed"] == 0])
    assert "±" not in table
    assert "nan" not in table


def test_other_settings_are_other_lines_and_not_seeds():
    two = [row | {"learning_rate": rate} for rate in (1e-3, 1e-2) for row in rows()]
    table = summary_table(two).splitlines()
    assert table[0].startswith("| K | d | learning_rate | seeds |")
    assert len(table) == 2 + 28
    assert any(line.startswith("| 50 | 250 | 0.01 | 3 | 90.35 ± 0.25 |") for line in table)
    with pytest.raises(ValueError, match="several settings, which differ in learning_rate"):
        reference.claims(two)


def test_a_diverged_seed_is_named_and_the_others_are_summarized():
    scored = rows()
    lost = next(row for row in scored if (row["k"], row["d_sae"], row["seed"]) == (50, 250, 1))
    for name in lost.keys() - {"d_sae", "k", "seed"}:
        lost[name] = None
    lost["diverged_at"] = 7
    line = next(line for line in summary_table(scored).splitlines() if "| 50 | 250 |" in line)
    assert "| 3; seed 1 diverged at step 7 |" in line
    # 0.9025 and 0.9045: t(0.975, 1) = 12.706; half width 12.706 * 0.001.
    assert "| 90.35 ± 1.27 (2 of 3) |" in line
    assert "nan" not in line
    a, _, c, _ = reference.claims(scored)
    assert "16.0 ± 12.7 (2 of 3) %" in a
    assert "+2.62 ± 0.00 (2 of 3) points" in c
    for row in scored:
        if (row["k"], row["d_sae"]) == (50, 250):
            row["mse"] = None
    line = next(line for line in summary_table(scored).splitlines() if "| 50 | 250 |" in line)
    assert "| - |" in line


def test_the_interval_says_what_varies():
    assert "the initialization alone" in interval_note(rows())
    varied = [row | {"data_seed": row["seed"]} for row in rows()]
    assert "the initialization and the order of the data." in interval_note(varied)


def test_comparison_holds_the_published_members_alone():
    lines = comparison_table(rows()).splitlines()[2:]
    assert len(lines) == len(reference.RESULTS)
    assert any(
        "| 84.4 % |" in line and "| 17.2 % |" in line and "| 7.4 % |" in line for line in lines
    )


def test_claims_name_the_measured_differences():
    a, b, c, d = reference.claims(rows())
    assert "16.0 ± " in a
    assert "K = 25 18.5 ±" in b
    assert "K = 200 1.0 ±" in b
    # (512 - 250) / 1e4 is 2.62 points, the same for every seed.
    assert "over alive latents +2.62 ± 0.00 points" in c
    assert "published definition +0.26 ± 0.00 points, fvu -0.26 ± 0.00 points" in d


def test_every_arm_has_its_own_claims():
    arms = [row | {"normalize": "none"} for row in rows()]
    arms += [row | {"normalize": "center", "dead_fraction": 0.0} for row in rows()]
    found = reference.claims(arms)
    assert len(found) == 8
    assert found[0].startswith("normalize = none: (a)")
    assert "16.0 ± " in found[0]
    assert found[4].startswith("normalize = center: (a)")
    assert "0.0 ± 0.0 %" in found[4]


def test_the_page_warns_of_singletons_and_holds_all_parts(tmp_path):
    write_markdown(rows(), "A synthetic sweep.", tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    for part in ("A synthetic sweep.", "singletons", "## The published claims", "(d) *Explained"):
        assert part in page


def test_figures_are_drawn(tmp_path):
    for x_name in ("d_sae", "k"):
        path = tmp_path / f"{x_name}.png"
        plot_panels(rows(), x_name, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000
