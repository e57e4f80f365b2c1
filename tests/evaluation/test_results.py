import json

from sparsight.evaluation.results import ResultFile, configuration_hash

STATED = {"format": 2, "chunks": 3}


def test_a_partial_file_begins_with_its_configuration(tmp_path):
    file = ResultFile(tmp_path / "r.json", STATED)
    file.add(0, {"nll": 1.0})
    file.add(2, {"nll": 3.0})
    lines = [json.loads(line) for line in file.partial.read_text().splitlines() if line]
    assert lines[0] == {"hash": configuration_hash(STATED), "configuration": STATED} and [line["chunk"] for line in lines[1:]] == [0, 2]
    assert file.chunks_done().keys() == {0, 2}


def test_each_shard_has_its_own_and_all_are_read(tmp_path):
    for shard in (0, 1):
        ResultFile(tmp_path / "r.json", STATED, shard).add(shard, {"nll": 1.0})
        assert "configuration" in json.loads((tmp_path / f"r.json.partial.{shard}").read_text().splitlines()[0])
    assert ResultFile(tmp_path / "r.json", STATED).chunks_done().keys() == {0, 1}


def test_a_partial_file_of_an_older_version_goes_on(tmp_path):
    file = ResultFile(tmp_path / "r.json", STATED)
    file.partial.write_text("\n" + json.dumps({"hash": file.hash, "chunk": 0, "nll": 1.0}) + "\n")
    file.add(1, {"nll": 2.0})
    assert file.chunks_done().keys() == {0, 1} and "configuration" not in file.partial.read_text()


def test_chunks_of_another_configuration_are_not_taken_up(tmp_path):
    ResultFile(tmp_path / "r.json", {**STATED, "chunks": 4}).add(0, {"nll": 1.0})
    file = ResultFile(tmp_path / "r.json", STATED)
    assert file.chunks_done() == {}
    file.add(1, {"nll": 1.0})
    assert file.chunks_done().keys() == {1}
