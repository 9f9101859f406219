"""docs/reference/metrics.md is what the code has, and every label in it is explained."""

from __future__ import annotations

from tests.docs.metrics_reference import COMMAND, PAGE, described, render


def test_the_page_is_made_from_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), f"run {COMMAND}"


def test_every_label_is_explained() -> None:
    explained = render().partition("## Labels")[2]
    for metrics in described().values():
        for metric in metrics:
            for label in metric.labels:
                assert f"`{label}`" in explained, f"{metric.name}: {label}"


def test_every_metric_has_a_text_and_names_its_unit() -> None:
    for metrics in described().values():
        for metric in metrics:
            assert metric.text.endswith("."), metric.name
            if metric.kind == "histogram" and "token" not in metric.name:
                assert metric.name.endswith("_seconds"), metric.name


def test_what_both_services_have_is_the_same_metric() -> None:
    one, other = ({metric.name: metric for metric in metrics} for metrics in described().values())
    shared = one.keys() & other.keys()
    assert {"paddock_metric_faults_total", "paddock_store_duration_seconds"} <= shared
    for name in shared:
        assert vars(one[name]) == vars(other[name])
