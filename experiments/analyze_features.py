"""Which latents of a trained SAE respond to one operation or number, and is that chance?

    python experiments/analyze_features.py --sweep=runs/gsm8k/sweep --k=50 --d_sae=250 \
        --start_rank=100 --end_rank=207

Writes, into --output (`features` in the sweep's folder by default), for the member with
this d_sae, k and seed:

    NAME.json   one record a latent, in the layout of the published analysis, with the
                calibrated rule, the taxonomy, the top samples and candidate swap pairs
    NAME.csv    one row a latent

Takes seconds on a CPU. On the published activations the published rule calls 8 of the
108 latents of these ranks specialized (7.4 %), of which 7 fire on one sample alone; see
the printed share of singletons, and the calibrated rate, before drawing conclusions.
"""

import json
import math
from collections import Counter
from pathlib import Path

import command
import numpy as np
from absl import flags

import sae_jax
from sae_jax.activations.store import LAST
from sae_jax.features.interventions import swap_pairs
from sae_jax.features.probing import sparse_probing
from sae_jax.features.properties import OPERATIONS, property_matrix
from sae_jax.features.records import feature_records, feature_summary
from sae_jax.report.tables import write_csv
from sae_jax.sweep.provenance import samples_of

_SWEEP = flags.DEFINE_string("sweep", None, "Folder of a saved sweep.", required=True)
_ACTIVATIONS = flags.DEFINE_string(
    "activations", None, "Folder of the store, if it is not where the sweep says."
)
_TRAIN_FRACTION = flags.DEFINE_float(
    "train_fraction", None, "Share of the problems trained on, if the sweep does not say."
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", None, "The split's, if the sweep does not say.")
_MEMBER = flags.DEFINE_integer("member", None, "Index of the member; or name it by its config:")
_D_SAE = flags.DEFINE_integer("d_sae", None, "Dictionary size of the member.")
_K = flags.DEFINE_integer("k", None, "Latents kept per sample by the member.")
_NORMALIZE = flags.DEFINE_string("normalize", None, "What was done to the member's samples.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the member.")
_LAYER = flags.DEFINE_integer("layer", None, "Layer, where the sweep has several.")
_POSITION = flags.DEFINE_string("position", None, "Position, where the sweep has several.")
_START_RANK = flags.DEFINE_integer("start_rank", 1, "First rank by firing rate, from 1.")
_END_RANK = flags.DEFINE_integer("end_rank", None, "Last rank, included; the last by default.")
_RULE = flags.DEFINE_enum(
    "rule", "published", ["published", "calibrated"], "Rule whose specialized latents to list."
)
_FREQUENT_NUMBERS = flags.DEFINE_bool(
    "frequent_numbers", False, "Also test every number found in 1-50 % of the problems."
)
_PROBE = flags.DEFINE_bool("probe", False, "Also probe the four operations with few latents.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")


def work() -> None:
    """Analyzes the member that the flags name."""
    result = sae_jax.SweepResult.load(_SWEEP.value)
    index = find_member(result.configs)
    member, config = result.members[index], result.configs[index]
    if member.diverged_at is not None:
        raise ValueError(f"member {index}, {config}, diverged at step {member.diverged_at}")
    samples = samples_of(
        result.data,
        _SWEEP.value,
        (
            _LAYER.value if config.layer is None else config.layer,
            _POSITION.value if config.position is None else config.position,
        ),
        activations=_ACTIVATIONS.value,
        train_fraction=_TRAIN_FRACTION.value,
        split_seed=_SPLIT_SEED.value,
    ).val
    z = np.asarray(member.sae().encode(samples.activations))

    records = feature_records(
        z,
        samples.problems,
        start_rank=_START_RANK.value,
        end_rank=_END_RANK.value,
        frequent_numbers=_FREQUENT_NUMBERS.value,
    )
    end_rank = _END_RANK.value or config.d_sae
    published = [record for record in records if record["type"] != "general"]
    calibrated = [record for record in records if record["calibrated"]["specialized"]]
    analysis = {
        "k": config.k,
        "d_sae": config.d_sae,
        "seed": config.seed,
        "layer": samples.layer,
        "position": samples.position,
        "rank_range": [_START_RANK.value, end_rank],
        "num_analyzed": len(records),
        "num_specialized": len(published),
        "num_specialized_calibrated": len(calibrated),
        "summary": without_nan(feature_summary(z, samples.problems)),
        "features": records,
        "swap_pairs": swap_pairs(records),
    }
    if _PROBE.value:
        properties, names = property_matrix(samples.problems)
        operations = properties[:, : len(OPERATIONS)]
        probes = sparse_probing(z, samples.activations, operations, names[: len(OPERATIONS)])
        analysis["probes"] = [without_nan(probe) for probe in probes]

    folder = Path(_OUTPUT.value or Path(_SWEEP.value) / "features")
    folder.mkdir(parents=True, exist_ok=True)
    name = (
        f"layer{samples.layer}_position{samples.position}_d{config.d_sae}_k{config.k}"
        f"_seed{config.seed}_ranks{_START_RANK.value}-{end_rank}"
    )
    paths = [folder / f"{name}.json", folder / f"{name}.csv"]
    paths[0].write_text(json.dumps(analysis, indent=1, allow_nan=False), encoding="utf-8")
    write_csv(latent_rows(records), paths[1])
    print_summary(analysis, published if _RULE.value == "published" else calibrated)
    for path in paths:
        print(path)


def find_member(configs: list[sae_jax.SAEConfig]) -> int:
    """Index of the one member that the flags name."""
    members = "\n  ".join(f"{i}: {config}" for i, config in enumerate(configs))
    if _MEMBER.value is not None:
        if not 0 <= _MEMBER.value < len(configs):
            raise ValueError(f"there is no member {_MEMBER.value}; there are\n  {members}")
        return _MEMBER.value
    wanted = {flag.name: flag.value for flag in (_D_SAE, _K, _NORMALIZE, _SEED, _LAYER)}
    wanted["position"] = "-1" if _POSITION.value == LAST else _POSITION.value
    wanted = {name: value for name, value in wanted.items() if value is not None}
    found = [
        index
        for index, config in enumerate(configs)
        if all(
            # A sweep on one array does not know its layer and position.
            getattr(config, name) is None or str(getattr(config, name)) == str(value)
            for name, value in wanted.items()
        )
    ]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} members have {wanted}; name one by its fields or by --member:"
            f"\n  {members}"
        )
    return found[0]


def without_nan(row: dict) -> dict:
    """JSON has no NaN, which stands for what is undefined."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }


def latent_rows(records: list[dict]) -> list[dict]:
    """One flat row a latent."""
    return [
        {
            **{
                name: record[name]
                for name in ("rank", "feature_id", "activation_freq", "mean_magnitude", "support")
            },
            "published_type": record["type"],
            "published_description": record["description"],
            "calibrated_specialized": "; ".join(record["calibrated"]["specialized"]),
            **{
                name: record["calibrated"][name]
                for name in ("best_property", "lift", "p_value", "q_value")
            },
            "taxonomy_type": record["taxonomy"]["type"],
            "taxonomy_confidence": record["taxonomy"]["confidence"],
        }
        for record in records
    ]


def print_summary(analysis: dict, listed: list[dict]) -> None:
    """The two rules side by side, and the latents that the chosen one calls specialized."""
    num_analyzed, summary = analysis["num_analyzed"], analysis["summary"]
    singletons = sum(record["support"] == 1 for record in analysis["features"])
    print(
        f"d_sae={analysis['d_sae']} k={analysis['k']} seed={analysis['seed']}: "
        f"{num_analyzed} alive latents in ranks {analysis['rank_range']}, "
        f"{singletons} of which fire on one sample only"
    )
    for rule, count in (
        ("published", analysis["num_specialized"]),
        ("calibrated", analysis["num_specialized_calibrated"]),
    ):
        print(
            f"  {rule:>10}: {count} specialized ({count / max(num_analyzed, 1):.1%}); over all "
            f"alive latents {percent(summary[f'{rule}_rate'])}, "
            f"shuffled {percent(summary[f'{rule}_null'])}"
        )
    kinds = Counter(record["taxonomy"]["type"] for record in analysis["features"])
    print("  taxonomy:", ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    for record in listed:
        print(
            f"  rank {record['rank']:>4} latent {record['feature_id']:>5} fires on "
            f"{record['support']:>4}: published {record['description']}; "
            f"calibrated {', '.join(record['calibrated']['specialized']) or 'none'}"
        )
    for pair in analysis["swap_pairs"]:
        print(
            f"  swap {pair['feature_a']} ({pair['description_a']}) and "
            f"{pair['feature_b']} ({pair['description_b']})"
        )
    for row in analysis.get("probes", []):
        print(
            f"  {row['property']:>14} from {row['num_features']}: AUC "
            f"{auc(row['auc_latents'])} latents, {auc(row['auc_activations'])} activations, "
            f"{auc(row['auc_permuted'])} shuffled labels"
        )


def percent(share: float | None) -> str:
    """A share, or a dash where it is undefined."""
    return "-" if share is None else f"{share:.1%}"


def auc(area: float | None) -> str:
    """An area under the curve, or a dash where it is undefined."""
    return "-" if area is None else f"{area:.3f}"


if __name__ == "__main__":
    command.start(work)
