# SPDX-License-Identifier: Apache-2.0
import json
import time

from recipes_lib.training.timing import Timing


def test_a_line_has_the_seconds_of_its_steps_and_what_they_went_into(tmp_path):
    timing = Timing(tmp_path)
    for _ in range(3):
        with timing.of("data"):
            time.sleep(0.01)
        timing.step()
    timing.write(2)
    with timing.of("watch"):
        time.sleep(0.01)
    timing.step()
    timing.write(3)
    first, second = map(json.loads, (tmp_path / "timing.jsonl").read_text().splitlines())
    assert (first["step"], first["steps"], second["step"], second["steps"]) == (2, 3, 3, 1)
    assert 0.03 <= first["data_seconds"] <= first["seconds"]
    assert first["watch_seconds"] == second["data_seconds"] == 0
    assert 0.01 <= second["watch_seconds"] <= second["seconds"]
