"""The page holds what NumPy finds by hand, refuses what it cannot show, and lets nothing run."""

import base64
import dataclasses
import gzip
import json
import re

import numpy as np
import planted
import pytest

import sae_jax
from sae_jax.activations.writer import StorePlan, StoreWriter, write_store
from sae_jax.features.logit_lens import Vocabulary
from sae_jax.report.dashboard.overview import loss_curve


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return planted.planted(tmp_path_factory.mktemp("store") / "store")


def blocks(path):
    """The data blocks of a page, unpacked with the standard library."""
    found = re.findall(r'id="data-([^"]+)">([^<]*)<', path.read_text("utf-8"))
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}


@pytest.fixture(scope="module")
def data(sweep, tmp_path_factory):
    store, result, _ = sweep
    path = tmp_path_factory.mktemp("page") / "page.html"
    vocabulary = Vocabulary(
        [f"t{i}" for i in range(20)], np.eye(20, planted.D_IN, dtype=np.float32)
    )
    effects = {0: np.array([0.5, *[np.nan] * (planted.D_IN - 1)])}
    made = sae_jax.report.page(
        result, path, val=store.select(3, 1), vocabulary=vocabulary, effects=effects
    )
    assert made == path
    return blocks(path)


def latent_of(seed, dimension, d_sae=planted.D_IN):
    return int(np.flatnonzero(planted.order_of(seed, d_sae) == dimension)[0])


def test_the_table_is_the_sweeps(sweep, data):
    _, result, _ = sweep
    columns = data["sweep"]["columns"]
    assert columns["d_sae"] == [8, 8, 8, 6, 6, 6]
    assert columns["fvu"] == pytest.approx([m.metrics["fvu"] for m in result.members], rel=1e-5)
    assert [s["members"] for s in data["sweep"]["settings"]] == [[0, 1, 2], [3, 4, 5]]
    for setting in data["sweep"]["settings"]:
        values = [result.members[i].metrics["fvu"] for i in setting["members"]]
        mean, half, count = setting["summaries"]["fvu"]
        assert mean == pytest.approx(np.mean(values), rel=1e-3)
        # Student's t of two degrees of freedom at 97.5 %.
        expected = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
        assert half == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert count == 3
    assert all(0 < setting["stability_by_chance"] < 1 for setting in data["sweep"]["settings"])


def test_latents_have_their_counts_values_and_labels(sweep, data):
    _, _, latents = sweep
    member, names = data["member-0"], data["slice-0"]["names"]
    z = latents[0]
    assert member["support"] == (z != 0).sum(axis=0).tolist()
    divides, adds = latent_of(0, planted.DIVISION), latent_of(0, planted.ADDITION)
    assert [names[p] for p in member["labels"][divides]] == ["division"]
    assert [names[p] for p in member["labels"][adds]] == ["addition"]
    # Half of the problems divide, and all on which the latent fires do.
    assert names[member["best"][divides]] == "division"
    assert member["lift"][divides] == 2
    # 1 / C(60, 30).
    assert member["p"][divides] == pytest.approx(8.455e-18, rel=1e-2)
    fires = z[:, divides][z[:, divides] != 0]
    assert member["low"][divides] == pytest.approx(fires.min(), rel=1e-3)
    assert member["high"][divides] == pytest.approx(fires.max(), rel=1e-3)
    counts = member["counts"][20 * divides : 20 * divides + 20]
    assert counts == np.histogram(fires, 20)[0].tolist()


def test_examples_are_the_strongest_and_those_around_lower_quantiles(data):
    member = data["member-0"]
    latent = latent_of(0, planted.DIVISION)
    shown = slice(member["start"][latent], member["start"][latent + 1])
    # 30 problems divide, and the later one is the stronger.
    assert member["sample"][shown][:10] == list(range(58, 38, -2))
    assert member["quantile"][shown] == [1] * 10 + [0.5] * 3 + [0.25] * 3
    # Ranks 14 and 22 of 0 to 29 are the median and the lower quartile of |z|, the rank before
    # and the one after with them.
    assert member["sample"][shown][10:] == [58 - 2 * rank for rank in (13, 14, 15, 21, 22, 23)]
    assert member["z"][shown][0] == pytest.approx(10.8)


def test_ablation_is_what_removing_the_latent_does(sweep, data):
    _, result, latents = sweep
    x, z = planted.activations(), latents[0]
    w_dec = result.members[0].params["w_dec"]
    variance = ((x - x.mean(axis=0)) ** 2).sum()
    for latent in range(planted.D_IN):
        without = z.copy()
        without[:, latent] = 0
        fvu = ((x - without @ w_dec) ** 2).sum() / variance
        expected = fvu - result.members[0].metrics["fvu"]
        assert data["member-0"]["fvu_rise"][latent] == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert data["member-0"]["effect"] == [0.5] + [None] * 7
    assert "effect" not in data["member-1"]


def test_a_latent_is_found_in_other_seeds_and_in_another_size(data):
    member = data["member-0"]
    others = {(match["member"], match["kind"]): match for match in member["matches"]}
    # Of the other size another seed than 0, where there is one.
    assert set(others) == {(1, "seed"), (2, "seed"), (4, "size")}
    latent = latent_of(0, planted.DIVISION)
    for seed in (1, 2):
        match = others[seed, "seed"]
        assert match["latent"][latent] == latent_of(seed, planted.DIVISION)
        assert match["cosine"][latent] == 1


def test_labels_shared_by_seeds_stand_beside_chance(data):
    of_size, names = data["latents"]["seeds"][0], data["slice-0"]["names"]
    division = names.index("division")
    assert of_size["members"] == [0, 1, 2]
    assert of_size["labeled"][division] == of_size["shared"][division] == 3
    assert of_size["shared_by_all"][division] == 3
    assert [of[division] for of in of_size["labeled_of"]] == [1, 1, 1]
    assert [of[division] for of in of_size["shared_of"]] == [1, 1, 1]
    assert data["member-0"]["shared"][latent_of(0, planted.DIVISION)] == 2
    assert of_size["labeled_shuffled"][division] < 1
    # Of 3 latents each meets 2 others by chance, with 1 in as many as fire.
    alive = sum(count > 0 for count in data["member-0"]["support"])
    expected = 3 * (1 - (1 - 1 / alive) ** 2)
    assert of_size["shared_dealt"][division] == pytest.approx(expected, abs=0.25)
    assert of_size["cosine"][division] == 1


def test_the_logit_lens_names_the_token_of_the_direction(data):
    lens, latent = data["member-0"]["lens"], latent_of(0, planted.DIVISION)
    row = lens["row"][latent]
    # Token i is read by dimension i alone.
    assert lens["tokens"][lens["raised"][row * lens["num"]]] == f"t{planted.DIVISION}"
    assert lens["raised_by"][row * lens["num"]] == 1


def test_steps_have_their_own_properties(data):
    _, question, answer, steps = data["slice-0"]["problems"][planted.STRONGEST]
    assert question == planted.HOSTILE
    assert (answer, steps) == ("58", [["6/2=3", [data["slice-0"]["names"].index("division")]]])


def test_a_loss_curve_keeps_ends_means_and_gaps():
    losses = np.arange(1, 1001, dtype=np.float32)
    steps, means = loss_curve(losses)
    assert (steps[0], steps[-1], means[0]) == (1, 1000, 1)
    assert len(steps) <= 60
    start = steps[-2]
    assert means[-1] == pytest.approx(losses[start:].mean(), rel=1e-3)
    losses[-1] = np.inf
    assert loss_curve(losses)[1][-1] is None


def test_a_page_of_a_table_alone_shows_no_latents(sweep, tmp_path):
    _, result, _ = sweep
    lost = dataclasses.replace(result.members[1], diverged_at=3)
    result = sae_jax.SweepResult([result.members[0], lost], result.train_config)
    found = blocks(sae_jax.report.page(result, tmp_path / "page.html"))
    assert found["latents"]["members"] == []
    assert found["sweep"]["columns"]["fvu"][1] is None
    assert found["sweep"]["columns"]["diverged_at"] == [None, 3]


def test_only_the_pages_own_scripts_may_run(sweep, tmp_path):
    _, result, _ = sweep
    path = sae_jax.report.page(result, tmp_path / "page.html", title="</title><script>1</script>")
    text = path.read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "<title>&lt;/title&gt;&lt;script&gt;1&lt;/script&gt;</title>" in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text.partition("<script>")[0])


def test_several_samples_of_a_problem_show_as_one_with_a_strip(tmp_path):
    # Two tokens a problem, of which the first is half as strong.
    problems, x = planted.problems(), planted.activations()
    tokens = np.stack([x / 2, x], axis=1).reshape(-1, planted.D_IN)
    counts = [2] * len(problems)
    plan = StorePlan(
        "tiny", [3], ["all"], planted.D_IN, problems, dtype="float32", rows_per_problem=counts
    )
    writer = StoreWriter(tmp_path / "store", plan)
    (tmp_path / "store").mkdir()
    writer.prepare()
    writer.write_shard(0, tokens[None, None])
    val = writer.finish().select(3, "all")
    config = sae_jax.SAEConfig(d_sae=8, k=2, layer=3, position="all", architecture="topk")
    made, z = planted.member(config, tokens, planted.order_of(0))
    result = sae_jax.SweepResult([made], sae_jax.TrainConfig())
    tokens = {problem.id: ["one", " two"] for problem in problems}
    found = blocks(sae_jax.report.page(result, tmp_path / "page.html", val=val, tokens=tokens))
    member = found["member-0"]
    assert found["slice-0"]["tokens"][0] == ["one", " two"]
    latent = latent_of(0, planted.DIVISION)
    assert member["support"][latent] == 60
    first, end = member["start"][latent : latent + 2]
    # The last token of the last problem that divides is the strongest of all.
    assert member["sample"][first] == 2 * 58 + 1
    assert len(set(np.array(member["sample"][first:end]) // 2)) == end - first
    # 5.4 and 10.8 of 10.8, in ninths, rounded up.
    assert member["strips"][first] == "59"


def test_a_size_below_another_members_k_is_no_obstacle(tmp_path):
    x = planted.activations()
    store = write_store(tmp_path / "store", {(3, 1): x}, planted.problems())
    members = [
        planted.member(
            sae_jax.SAEConfig(d_sae=d_sae, k=k, layer=3, position=1, architecture="topk"),
            x,
            planted.order_of(0, d_sae),
        )[0]
        for d_sae, k in ((8, 7), (4, 2), (8, 2))
    ]
    result = sae_jax.SweepResult(members, sae_jax.TrainConfig())
    found = blocks(sae_jax.report.page(result, tmp_path / "page.html", val=store.select(3, 1)))
    assert [match["member"] for match in found["member-0"]["matches"]] == []
    assert [match["member"] for match in found["member-1"]["matches"]] == [2]


def test_samples_of_another_place_are_refused(sweep, tmp_path):
    _, result, _ = sweep
    x = planted.activations()
    other = write_store(tmp_path / "store", {(7, 0): x}, planted.problems()).select(7, 0)
    with pytest.raises(ValueError, match=r"are of \[\(7, 0\)\]; the members were trained on"):
        sae_jax.report.page(result, tmp_path / "page.html", val=other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": []}, "found 0 rows for 6 members"),
        ({"members": [7]}, r"members \[7\] have no latents to show"),
        ({"effects": {0: np.zeros(3)}}, r"effects\[0\] has shape \(3,\)"),
        ({"effects": {9: np.zeros(3)}}, r"effects\[9\]"),
        (
            {"vocabulary": Vocabulary(["a"], np.zeros((1, 3), np.float32))},
            r"the unembedding has shape \(1, 3\); expected \(1, 8\)",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(sweep, tmp_path, arguments, message):
    store, result, _ = sweep
    with pytest.raises(ValueError, match=message):
        sae_jax.report.page(result, tmp_path / "page.html", val=store.select(3, 1), **arguments)
    assert not (tmp_path / "page.html").exists()
