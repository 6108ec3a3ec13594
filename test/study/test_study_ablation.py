"""dtp_ros/study/report.py on made-up ablations in which it is known who solves what."""

from dataclasses import replace

from report_tables import exact, tables
from study_log import ABLATED, made

from dtp_ros.study import report


def test_an_ablation_is_tested_against_both_as_one_family():
    text = report.ablation_report(made(ABLATED))
    rows = next(rows for title, rows in tables(text) if title == "stack" and "against" in rows[0])
    found = {(row["arm"].strip("`"), row["against"].strip("`")): row for row in rows}
    assert len(found) == 4 + 3
    assert found["random_all 0.5", "dtp 0.5"]["gained / lost"] == "0 / 11"
    assert found["random_unimportant 0.5", "off"]["gained / lost"] == "2 / 2"
    # The smallest of seven p is 2 / 2^11; the next are 2 / 2^6, then 2 / 2^5 twice.
    assert found["random_all 0.5", "dtp 0.5"]["p (Holm)"] == f"{7 * exact(0, 11):.3g}"
    assert found["random_all 0.5", "off"]["p (Holm)"] == f"{6 * exact(0, 6):.2f}"
    assert found["no_gaussian 0.5", "dtp 0.5"]["p (Holm)"] == f"{5 * exact(0, 5):.2f}"
    column = "stack (20): success"
    table_4 = next(rows for title, rows in tables(text) if title == "bench" and column in rows[0])
    assert [row[column].split()[0] for row in table_4] == ["50.0", "75.0", "50.0", "20.0", "50.0"]
    assert "stack (20): grasp" in table_4[0]


def test_counts_of_the_random_variants_are_held_to_dtp_s():
    episodes = made(ABLATED)
    wrong = [
        replace(e, series={**e.series, "pruned": (9.0, *e.series["pruned"][1:])})
        if e.arm == "random_all 0.5" and e.episode < 5
        else e
        for e in episodes
    ]
    column = "as many as `dtp 0.5` at the first step"
    for chosen, all_same in ((episodes, "100.0 %"), (wrong, "75.0 %")):
        text = report.ablation_report(chosen)
        rows = {r["arm"]: r for _, rows in tables(text) if column in rows[0] for r in rows}
        assert rows["`random_all 0.5`"][column].startswith(all_same)
        assert rows["`random_unimportant 0.5`"][column].startswith("100.0 %")
        assert rows["`random_unimportant 0.5`"]["difference to `dtp 0.5`"] == "0 (0 ... 0)"
        assert rows["`no_gaussian 0.5`"][column] == "-"
        assert "`off`" not in rows
    assert rows["`random_all 0.5`"]["difference to `dtp 0.5`"] != "0 (0 ... 0)"
    each_token = [replace(e, setup={**e.setup, "mask_schedule": "per_token"}) for e in episodes]
    assert column not in report.ablation_report(each_token)


def test_an_ablation_without_dtp_is_compared_with_no_pruning_only():
    text = report.ablation_report(made({arm: solves for arm, solves in ABLATED.items() if arm != "dtp 0.5"}))
    assert "DTP itself was not run" in text
    assert "`dtp 0.5`" not in text


def test_an_ablation_at_two_tolerances_is_two():
    more = {f"{arm.split()[0]} 1": solves for arm, solves in ABLATED.items() if arm != "off"}
    found = report.ablations(made({**ABLATED, **more}))
    assert set(found) == {"ablation_tolerance_0.5", "ablation_tolerance_1.0"}
    assert {e.arm for e in found["ablation_tolerance_1.0"]} == {"off", *more}
    assert set(report.sweeps(made({**ABLATED, **more}))) == {"sweep"}


def test_two_tolerances_of_the_same_arms_are_named_apart():
    assert report.ablations(made(ABLATED)).keys() == {"ablation"}
    assert not report.sweeps(made(ABLATED))
