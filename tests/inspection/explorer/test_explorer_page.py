"""Which events of a run are in the page of the explorer, and with which contents."""

import json
from pathlib import Path

import numpy as np
import pytest

from perceiver.inspection.explorer.events import event_path, with_scores, write_arrays
from perceiver.inspection.explorer.page import Event, evenly_spread, events_in, explorer_page, page_event, write_page
from tests.inspection.explanations import arrays_of, contents_of, example_explanation


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7, 11, 101])
@pytest.mark.parametrize("num_chosen", [0, 1, 2, 6])
def test_numbers_are_evenly_spread_and_include_the_last(count, num_chosen):
    chosen = evenly_spread(count, num_chosen)
    assert len(chosen) == min(count, num_chosen)
    assert chosen == sorted(set(chosen) & set(range(count)))
    assert chosen[-1:] == list(range(count))[-1:][: len(chosen)]
    if len(chosen) > 1:
        assert chosen[0] == 0
        assert np.ptp(np.diff(chosen)) <= 1


def test_an_event_has_the_scores_under_their_logged_names():
    arrays = arrays_of(example_explanation(), 11, 3, **{"stat/cross0/entropy": 1.5, "energy_in_box": 0.25})
    summary = {"num_samples": 61, "maps": {"rollout": {"mark": "✓"}}}
    arrays["faithfulness"] = np.array(json.dumps(summary))
    event = page_event(arrays)
    assert (event.name, event.step, event.epoch) == ("step 11 · epoch 3", 11, 3)
    assert event.values == {"attention/stat/cross0/entropy": 1.5, "attention/energy_in_box": 0.25}
    assert event.faithfulness == summary
    assert list(event.maps) == ["s/0", "s/1", "s/2"]
    numbers = page_event(arrays, with_maps=False, name="mine")
    assert (numbers.name, numbers.maps, numbers.values) == ("mine", {}, event.values)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eleven events, the latest written first, the seventh with a test of faithfulness."""
    arrays = arrays_of(example_explanation())
    for number in reversed(range(11)):
        more = {"step": np.array(13 * number + 5), "epoch": np.array(number)}
        if number == 6:
            more["faithfulness"] = np.array(json.dumps({"num_samples": 5}))
        write_arrays(event_path(tmp_path, 13 * number + 5), with_scores(arrays | more, {"energy_in_box": number / 100}))
    return tmp_path


def test_a_page_has_the_values_of_all_events_in_order_and_the_maps_of_some(folder, tmp_path_factory):
    events = events_in(folder, num_with_maps=3)
    assert [(event.step, event.epoch) for event in events] == [(13 * number + 5, number) for number in range(11)]
    assert [event.values["attention/energy_in_box"] for event in events] == [number / 100 for number in range(11)]
    assert [number for number, event in enumerate(events) if event.maps] == [0, 5, 10], "the last is one of them"
    assert [number for number, event in enumerate(events) if event.faithfulness] == [6]
    assert [event.step for event in events_in(folder, num_with_maps=0) if event.maps] == []
    assert events_in(tmp_path_factory.mktemp("empty")) == []


def test_files_are_read_again_only_for_missing_maps(folder, monkeypatch):
    known = {event.step: event for event in events_in(folder, num_with_maps=3)}
    read, original = [], np.load

    def load(path, *args, **options):
        read.append(Path(path).name)
        return original(path, *args, **options)

    monkeypatch.setattr(np, "load", load)
    again = events_in(folder, num_with_maps=3, known=known)
    assert read == []
    assert again == list(known.values())
    fewer = events_in(folder, num_with_maps=2, known=known)
    assert read == []
    assert [number for number, event in enumerate(fewer) if event.maps] == [0, 10]
    events_in(folder, num_with_maps=6, known=known)
    assert read == [f"step_{13 * number + 5:08d}.npz" for number in (2, 4, 6, 8)]


def event(step: int, maps: dict[str, str], **options) -> Event:
    named = {id: {"name": name} for id, name in maps.items()}
    return Event(f"step {step}", step, 0, {"attention/x": step / 10}, named, **options)


def test_explanations_are_numbered_over_all_runs_and_maps_belong_to_samples_by_id():
    samples = [{"id": name, "ground_truth": [], "modalities": {}} for name in ("a", "b", "c")]
    test = {"num_samples": 5, "maps": {"rollout": {"mark": "?"}}}
    runs = {
        "first": [event(3, {"c": "0c", "a": "0a"}), event(5, {}), event(7, {"x": "of another data set"})],
        "second": [event(2, {"b": "1b", "x": "of another"}), event(4, {"a": "2a", "c": "2c"}, faithfulness=test)],
    }
    page, maps = contents_of(explorer_page("the <title>", samples, runs))
    assert (page["title"], page["samples"]) == ("the <title>", samples)
    assert [run["name"] for run in page["runs"]] == ["first", "second"]
    found = [one for run in page["runs"] for one in run["events"]]
    assert [one["explanation"] for one in found] == [0, None, None, 1, 2]
    assert [one["step"] for one in found] == [3, 5, 7, 2, 4]
    assert [one["values"] for one in found] == [{"attention/x": step / 10} for step in (3, 5, 7, 2, 4)]
    assert [one["faithfulness"] for one in found] == [None] * 4 + [test]
    expected = {"0a": (0, 0), "0c": (0, 2), "1b": (1, 1), "2a": (2, 0), "2c": (2, 2)}
    assert {one["name"]: (one["explanation"], one["sample"]) for one in maps} == expected


def test_a_page_names_its_initial_event_and_the_one_compared_with():
    first, other = event(3, {"a": "0a"}), event(3, {"a": "1a"})
    runs = {"first": [event(1, {}), first, event(5, {"a": "2a"})], "second": [other]}
    for opened, expected in (((), []), ((first,), [[0, 1]]), ((first, other), [[0, 1], [1, 0]])):
        assert contents_of(explorer_page("title", [], runs, opened=opened))[0]["initial_events"] == expected


def test_a_page_is_written_with_any_name_of_a_file(tmp_path):
    path = tmp_path / "index.html"
    for page in ("the old page – α", "a name that is no text: \udcff"):
        assert write_page(path, page) == path
        assert path.read_text(encoding="utf-8") == page.replace("\udcff", "\\udcff")
    assert list(tmp_path.iterdir()) == [path]
