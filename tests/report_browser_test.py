"""The page in a real browser without network: what a reader does, and what the reader sees."""

import dataclasses
import time
from contextlib import contextmanager

import numpy as np
import planted
import pytest
from chromium import Reader, chromium

import sae_jax
from sae_jax import SAEConfig, SweepResult, TrainConfig
from sae_jax.activations.writer import write_store
from sae_jax.problems import Problem
from sae_jax.sweep.result import Member

MAX_BYTES, MAX_FIRST_PAINT = 25_000_000, 2000


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    store, result, _ = planted.planted(folder / "store")
    return sae_jax.report.page(result, folder / "page.html", val=store.select(3, 1))


@pytest.fixture
def opened(browser, path):
    @contextmanager
    def open_page(address="", **options):
        reader = Reader(browser, options.pop("path", path), address, **options)
        yield reader
        reader.close()

    return open_page


def latent_of(seed, dimension):
    return int(np.flatnonzero(planted.order_of(seed) == dimension)[0])


def test_the_table_is_there_at_once_and_sorts(opened):
    with opened() as reader:
        assert reader.texts("#sweep .status") == ["6 of 6 members"]
        assert reader.column("sweep", "d_sae") == ["8", "8", "8", "6", "6", "6"]
        reader.page.click("#sweep th[data-column=fvu] .sort")
        reader.settle()
        shown = [float(text) for text in reader.column("sweep", "fvu")]
        assert shown == sorted(shown)
        assert shown[0] < shown[-1]
        heading = reader.page.locator("#sweep th[data-column=fvu]")
        assert heading.get_attribute("aria-sort") == "ascending"
        reader.page.click("#sweep th[data-column=fvu] .sort")
        reader.settle()
        assert [float(text) for text in reader.column("sweep", "fvu")] == shown[::-1]


def test_filters_apply_to_the_table_and_the_plots(opened):
    with opened() as reader:
        assert reader.page.locator("#sweep .members circle").count() == 6
        reader.page.fill("#sweep input[type=search]", "d_sae<8 seed!=1")
        reader.settle()
        assert reader.column("sweep", "d_sae") == ["6", "6"]
        assert reader.column("sweep", "seed") == ["0", "2"]
        assert reader.page.locator("#sweep .members circle").count() == 2
        reader.page.click("text=Clear")
        reader.settle()
        reader.page.get_by_label("seed", exact=True).first.select_option("1")
        reader.settle()
        assert reader.column("sweep", "seed") == ["1", "1"]


def test_a_column_can_be_taken_off_and_explained(opened):
    with opened() as reader:
        reader.page.click("#sweep th[data-column=fvu] .help")
        assert "Fraction of variance unexplained" in reader.page.inner_text("#meaning")
        reader.page.click("#meaning button")
        reader.page.click("#sweep .columns summary")
        reader.page.uncheck("#sweep .boxes label:has-text('fvu') input")
        assert reader.page.locator("#sweep th[data-column=fvu]").count() == 0


def test_what_is_chosen_in_one_place_is_seen_in_all(opened):
    with opened() as reader:
        reader.page.click("#sweep tr.row[data-row='4']")
        reader.settle()
        assert "chosen=4" in reader.page.url
        marked = "#sweep tr.row[aria-selected=true]"
        assert reader.page.locator(marked).get_attribute("data-row") == "4"
        # Of points only the chosen member's has an edge; the panels mark its setting.
        edge = "#sweep {} circle[stroke=currentColor]"
        assert reader.page.locator(edge.format(".members")).count() == 1
        panels = reader.page.locator("#sweep .panel").count()
        assert reader.page.locator(edge.format(".settings")).count() == panels
        assert reader.texts("#sweep .status a") == ["latents of K 2, d 6, seed 1"]
        # And from a plot to the table.
        # Members come in order, but for the chosen one, which lies below the others.
        reader.page.locator("#sweep .members circle").nth(4).click(force=True)
        reader.settle()
        assert reader.page.locator(marked).get_attribute("data-row") == "3"
        reader.page.go_back()
        reader.settle()
        assert reader.page.locator(marked).get_attribute("data-row") == "4"


def test_plots_name_what_they_leave_out_and_a_filter_keeps_colors(opened, tmp_path):
    _, result, _ = planted.planted(tmp_path / "store")
    members = list(result.members)
    for i in (3, 4, 5):
        config = dataclasses.replace(members[i].config, k=None, architecture="relu")
        losses = 1e6 * members[i].losses if i != 3 else np.full(200, np.nan, np.float32)
        members[i] = dataclasses.replace(members[i], config=config, losses=losses)
    sweep = SweepResult(members, result.train_config)
    with opened(path=sae_jax.report.page(sweep, tmp_path / "page.html")) as reader:
        # Three of the members lack K; all have an architecture.
        assert reader.texts("#sweep .legend .key") == ["relu", "topk"]
        colors = dict(reader.page.evaluate(COLORS))
        reader.page.get_by_label("Against", exact=True).select_option("k")
        assert reader.texts("#sweep figure > .note") == [
            "Left off, since they have no K: d 6, relu."
        ]
        assert "Left out: d 6, relu, seed 0." in reader.texts("#sweep figure p")[-1]
        reader.page.fill("#sweep input[type=search]", "topk")
        reader.settle()
        assert reader.texts("#sweep .legend .key") == ["topk"]
        assert dict(reader.page.evaluate(COLORS)) == {"topk": colors["topk"]}


COLORS = """[...document.querySelectorAll("#sweep .legend .key")]
    .map((key) => [key.innerText, key.querySelector("i").style.background])"""


def test_choosing_brings_the_row_and_its_chance_level_into_sight(opened, tmp_path):
    _, small, _ = planted.planted(tmp_path / "store")
    result = planted.repeated(small, 200)
    written = sae_jax.report.page(result, tmp_path / "page.html")
    with opened("#sweep?chosen=150", path=written) as reader:
        row = reader.page.locator("#sweep tr.row[data-row='150']")
        box, table = row.bounding_box(), reader.page.locator("#sweep .rows").bounding_box()
        assert table["y"] < box["y"] < table["y"] + table["height"] - box["height"] + 1
        stability = reader.texts("#sweep .panel .note")
        assert len(stability) == reader.page.locator("#sweep .panel").count()


def test_the_best_setting_at_a_sparsity_is_named(opened):
    with opened() as reader:
        reader.page.fill("#sweep input[type=number]", "2")
        rows = reader.texts("#sweep .best tr")
        assert rows[1].startswith("K 2, d 8")
        assert "±" in rows[1]
        reader.page.fill("#sweep input[type=number]", "50")
        assert reader.texts("#sweep .best") == ["No setting has this L0."]


def test_an_address_opens_exactly_one_latent(opened):
    latent = latent_of(1, planted.DIVISION)
    with opened(f"#latents?member=1&latent={latent}") as reader:
        assert reader.texts("#latents .detail h2") == [f"Latent {latent}"]
        text = reader.page.inner_text("#latents .detail")
        assert "K 2, d 8, seed 1" in text
        assert "division" in text
        assert "Around the 50 % quantile of |z|" in text
        assert reader.texts("#latents .example strong")[0] == "z = 10.8"
        assert reader.page.locator("#latents .step.held").count() > 0
        links = reader.page.locator("#latents .detail td a")
        assert links.first.inner_text() == f"latent {latent_of(0, planted.DIVISION)}"
        links.first.click()
        reader.settle()
        assert "seed 0" in reader.page.inner_text("#latents .detail .tools")
        reader.page.go_back()
        reader.settle()
        assert reader.texts("#latents .detail h2") == [f"Latent {latent}"]


def test_a_problem_that_asks_for_a_script_shows_as_text(opened):
    latent = latent_of(0, planted.DIVISION)
    with opened(f"#latents?member=0&latent={latent}&search=onerror") as reader:
        assert str(latent) in reader.column("latents", "latent")
        assert reader.texts("#latents .example .text")[0] == planted.HOSTILE
        assert reader.page.locator("#latents img").count() == 0
        assert reader.page.title() == "Sweep"


def test_labels_and_searches_list_the_latents(opened):
    divides = latent_of(0, planted.DIVISION)
    with opened("#latents?member=0&label=division") as reader:
        assert reader.column("latents", "latent") == [str(divides)]
        assert reader.column("latents", "shared") == ["2"]
        rows = reader.texts("#latents .seeds table >> nth=0")
        assert "division\t3" in rows[0]
        reader.page.get_by_label("Label", exact=True).select_option("")
        reader.page.fill("#latents input[type=search]", "lift>=2 division")
        reader.settle()
        assert str(divides) in reader.column("latents", "latent")
        reader.page.fill("#latents input[type=search]", "nowhere to be found")
        reader.settle()
        assert reader.texts("#latents .status")[0].startswith("0 of 8 latents")


def test_a_property_opens_a_seed_that_has_it(opened, tmp_path):
    # In two of the three seeds the latent that divides never fires.
    store, result, _ = planted.planted(tmp_path / "store")
    for seed in (0, 2):
        result.members[seed].params["b_enc"][latent_of(seed, planted.DIVISION)] = -100
    written = sae_jax.report.page(result, tmp_path / "page.html", val=store.select(3, 1))
    divides = str(latent_of(1, planted.DIVISION))
    with opened("#latents?member=0", path=written) as reader:
        reader.page.click("#latents .seeds td a:text-is('division')")
        reader.settle()
        assert "member=1" in reader.page.url
        assert reader.column("latents", "latent") == [divides]
    with opened("#latents?member=0&label=division", path=written) as reader:
        assert reader.column("latents", "latent") == []
        assert "other seeds with this label: seed 1 (1)" in reader.texts("#latents .status")[0]
        reader.page.click("#latents .status a")
        reader.settle()
        assert reader.column("latents", "latent") == [divides]


def test_the_tab_of_latents_opens_the_chosen_member(opened):
    with opened() as reader:
        reader.page.click("#sweep tr.row[data-row='4']")
        reader.settle()
        reader.page.click("nav a[data-view=latents]")
        reader.settle()
        assert "K 2, d 6, seed 1" in reader.page.inner_text("#latents .detail .tools")
        reader.page.click("nav a[data-view=sweep]")
        reader.settle()
        marked = reader.page.locator("#sweep tr.row[aria-selected=true]")
        assert marked.get_attribute("data-row") == "4"


def test_keys_go_through_the_list(opened):
    with opened("#latents?member=0") as reader:
        reader.page.locator("#latents .rows").focus()
        reader.page.keyboard.press("Home")
        reader.page.keyboard.press("Enter")
        reader.settle()
        listed = reader.column("latents", "latent")
        assert reader.texts("#latents .detail h2") == [f"Latent {listed[0]}"]
        reader.page.keyboard.press("j")
        reader.settle()
        assert reader.texts("#latents .detail h2") == [f"Latent {listed[1]}"]
        reader.page.keyboard.press("k")
        reader.settle()
        assert reader.texts("#latents .detail h2") == [f"Latent {listed[0]}"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["#sweep", "#latents?member=0&latent=1", "#glossary"])
def test_small_screens_scroll_down_only(opened, address, scheme):
    with opened(address, width=400, height=800, scheme=scheme) as reader:
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= 400
        back, ink = reader.page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.body).color]"
        )
        assert contrast(back, ink) >= 7  # WCAG's AAA.
        assert (luminance(back) < 0.1) == (scheme == "dark")
        reader.page.click("#theme")
        back = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (luminance(back) < 0.1) == (scheme == "light")


@pytest.mark.parametrize("address", ["#sweep", "#latents?member=0&latent=1"])
def test_on_paper_nothing_is_cut_off_and_no_button_is_left(opened, address):
    with opened(address, width=760, height=1000) as reader:
        reader.page.emulate_media(media="print")
        reader.page.wait_for_timeout(100)
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= 760
        buttons = reader.page.locator("main button:not(.link):not(.sort), nav a")
        assert not any(button.is_visible() for button in buttons.all())
        if "latent" in address:
            assert reader.page.locator("#latents .detail h2").is_visible()
        else:
            assert reader.page.locator("#sweep tr.row").count() == 6


def luminance(color):
    """Relative luminance of "rgb(r, g, b)", as WCAG 2.1 defines it."""
    parts = [float(part) / 255 for part in color[4:-1].split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a, b):
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_a_map_shows_layers_and_positions(opened, tmp_path):
    _, result, _ = planted.planted(tmp_path / "store")
    places = [(layer, position) for layer in (3, 9) for position in (0, 1, "last")]
    members = [
        dataclasses.replace(
            member, config=dataclasses.replace(member.config, layer=layer, position=position)
        )
        for (layer, position), member in zip(places, result.members, strict=True)
    ]
    sweep = SweepResult(members, result.train_config)
    written = sae_jax.report.page(sweep, tmp_path / "page.html")
    with opened(path=written) as reader:
        assert reader.page.locator("#sweep .slices rect").count() == 6
        reader.page.locator("#sweep .slices rect").nth(5).click(force=True)
        reader.settle()
        assert reader.column("sweep", "layer") == ["9"]
        assert reader.column("sweep", "position") == ["last"]


def test_activations_show_on_the_tokens(opened, tmp_path):
    store, samples = planted.token_store(tmp_path / "store")
    config = SAEConfig(d_sae=8, k=2, layer=3, position="all", architecture="topk")
    member, _ = planted.member(config, samples, planted.order_of(0))
    written = sae_jax.report.page(
        SweepResult([member], TrainConfig()),
        tmp_path / "page.html",
        val=store.select(3, "all"),
        tokens={problem.id: ["<b>one</b>", " two"] for problem in store.problems},
    )
    latent = latent_of(0, planted.DIVISION)
    with opened(f"#latents?latent={latent}", path=written) as reader:
        assert reader.texts("#latents .example .text")[0] == "<b>one</b> two"
        strengths = [
            token.get_attribute("style")
            for token in reader.page.locator("#latents .example .token").all()[:2]
        ]
        # 5.4 and 10.8 of 10.8, in ninths, rounded up.
        assert strengths == ["--strength: 56%;", "--strength: 100%;"]


def test_many_members_and_latents_open_at_once(opened, tmp_path):
    d_sae, d_in, n, k = 16_384, 64, 4000, 64
    rng = np.random.default_rng(0)
    problems = [
        Problem(f"p-{i}", " ".join(["word"] * 50), steps=(f"{i}+1={i + 1}",)) for i in range(n)
    ]
    x = rng.normal(size=(n, d_in)).astype(np.float32)
    store = write_store(tmp_path / "store", {(3, 1): x}, problems)
    w_dec = rng.normal(size=(d_sae, d_in)).astype(np.float32) / 8
    params = {
        "w_enc": np.ascontiguousarray(w_dec.T),
        "b_enc": np.zeros(d_sae, np.float32),
        "w_dec": w_dec,
        "b_dec": np.zeros(d_in, np.float32),
    }
    rate = np.full(d_sae, 0.01, np.float32)
    large = Member(
        SAEConfig(d_sae=d_sae, k=k, layer=3, position=1, architecture="topk"),
        params,
        {"mse": 1.0, "fvu": 0.5, "explained_variance": 0.5, "l0": 32.0, "dead_fraction": 0.1},
        rate,
        np.geomspace(10, 1, 600).astype(np.float32),
    )
    _, small, _ = planted.planted(tmp_path / "small")
    others = planted.repeated(small, 1151).members
    result = SweepResult([large, *others], small.train_config)
    written = sae_jax.report.page(
        result, tmp_path / "page.html", val=store.select(3, 1), members=[0]
    )
    size = written.stat().st_size
    assert size < MAX_BYTES
    for address, view in (("#sweep", "sweep"), ("#latents?member=0&latent=16000", "latents")):
        with opened(address, path=written) as reader:
            paint = reader.page.evaluate(
                "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            )
            rows = reader.page.evaluate("performance.getEntriesByName('shown')[0].startTime")
            print(f"{address}: {size / 1e6:.1f} MB, paint {paint:.0f} ms, rows {rows:.0f} ms")
            assert paint < MAX_FIRST_PAINT
            table = reader.page.locator(f"#{view} [role=grid]")
            assert table.get_attribute("aria-rowcount") == ("1152" if view == "sweep" else "16384")
            # Only what is in sight is made, at the top and at the end.
            rows_made = reader.page.locator(f"#{view} tr.row")
            assert 0 < rows_made.count() < 120
            start = time.monotonic()
            reader.page.locator(f"#{view} .rows").evaluate("e => { e.scrollTop = e.scrollHeight }")
            reader.page.wait_for_timeout(100)
            last = rows_made.last.get_attribute("aria-rowindex")
            assert last == ("1152" if view == "sweep" else "16384")
            assert time.monotonic() - start < 1
