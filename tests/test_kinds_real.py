"""Real files: the counts that the data's own descriptions state, and the contract of each kind on them."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from segue.data import read
from segue.data.reading import _choose_kind, _find_files
from segue.errors import SegueError
from segue.kinds import KINDS, Problems
from segue.testing import check_codec, check_kind


def test_shakespeare(shared_data) -> None:
    data = read(shared_data("tiny-shakespeare"))
    assert (data.kind.name, len(data), data.total, len(data.vocabulary)) == ("text", 1, 1_115_394, 65)
    train, test = data.split(0.1)
    assert abs(test.total / data.total - 0.1) < 0.02
    codec = train.codec(vocabulary=512)
    store = test.encode(codec)
    assert all(codec.decode(store[i].ids) == test[i].object for i in range(len(test)))
    assert store.units.sum() == test.total and len(store.tokens) < test.total / 1.8


def test_novels_in_a_folder(shared_data) -> None:
    data = read(shared_data("gutenberg-novels"))
    assert data.kind.name == "text" and len(data) == 8 and not data.problems


def test_movielens(shared_data) -> None:
    folder = shared_data("movielens-latest-small-2016")
    data = read(folder)
    assert (data.kind.name, len(data), data.total, len(data.vocabulary)) == ("events", 671, 100_004, 9_066)
    assert data.lengths.min() == 20 and data.lengths.max() == 2391 and np.median(data.lengths) == 71
    assert data.problems.total == 3, "the films, links and tags are told, not read"
    assert all((np.diff(record.channels["time"]) >= 0).all() for record in data)
    rated = read(folder / "ratings.csv.gz", also="rating")
    assert {*rated[0].channels["rating"].tolist()} <= {x / 2 for x in range(1, 11)}
    assert rated.split(0.2, by="time")[1].total == pytest.approx(20_000, rel=0.05)


def test_a_genome(shared_data) -> None:
    folder = shared_data("ecoli-k12")
    data = read(folder / "GCF_000005845.2_ASM584v2_genomic.fna.gz")
    assert (data.kind.name, len(data), data.total) == ("dna", 1, 4_641_652)
    share = (data.vocabulary["G"] + data.vocabulary["C"]) / data.total
    assert round(share, 3) == 0.508
    check_codec(data.codec(), [data[0].object])
    check_codec(data.codec(k=6), [data[0].object])
    assert data.encode(data.codec()).tokens.dtype == np.uint8
    assert abs(data.split(0.1)[1].total / data.total - 0.1) < 0.01


def test_the_same_genome_from_genbank(shared_data) -> None:
    pytest.importorskip("Bio")
    folder = shared_data("ecoli-k12")
    fasta = read(folder / "GCF_000005845.2_ASM584v2_genomic.fna.gz")
    assert read(folder / "GCF_000005845.2_ASM584v2_genomic.gbff.gz")[0].object == fasta[0].object


def test_proteins(shared_data) -> None:
    data = read(shared_data("prokka-proteins"))
    assert (data.kind.name, len(data)) == ("protein", 4_209 + 9_704 + 2_872)
    assert data.total == 1_312_517 + 3_322_428 + 904_468
    train, test = data.split(0.1)
    assert not {record.object for record in test} & {record.object for record in train}


def test_alignments_and_phages(shared_data) -> None:
    assert read(shared_data("protein-families") / "globins45.fa").kind.name == "protein"
    assert len(read(shared_data("protein-families") / "A0A1C5UJ41.a3m.gz")) > 10
    phages = read(shared_data("phage-genomes"))
    assert (phages.kind.name, len(phages), phages.total) == ("dna", 56, 48_502 + 86_177 + 210_132)


@pytest.mark.parametrize("log, cases, events, activities", [
    ("bpi_12", 13_087, 164_506, 23), ("receipt_phase", 1_434, 8_577, 27), ("sepsis", 1_050, 15_214, 16),
    ("nasa_complete", 2_566, 36_819, 47), ("mit_b", 17, 1_758, 68)])
def test_cases_a_line(shared_data, log: str, cases: int, events: int, activities: int) -> None:
    data = read(shared_data("process-logs-next-element") / f"{log}.txt.gz", kind="cases")
    assert (len(data), data.total, len(data.vocabulary)) == (cases, events, activities)


@pytest.mark.parametrize("folder, log, cases, events, activities", [
    ("process-logs-next-element", "bpi12", 13_087, 164_506, 23),
    ("process-logs-next-element", "sepsis", 1_050, 15_214, 16),
    ("process-logs-timed", "bpi_12_w", 9_658, 72_413, 6), ("process-logs-timed", "env_permit", 937, 38_944, 381)])
def test_process_logs(shared_data, folder: str, log: str, cases: int, events: int, activities: int) -> None:
    data = read(shared_data(folder) / f"{log}.csv.gz")
    assert (data.kind.name, len(data), data.total, len(data.vocabulary)) == ("events", cases, events, activities)
    assert set(data.channels) == ({"time", "gap"} if folder.endswith("timed") else set())


def test_other_sets(shared_data) -> None:
    taxi = read(shared_data("tpp-taxi"))
    assert (taxi.kind.name, len(taxi), taxi.total) == ("events", 2_000, 74_078) and "time" in taxi.channels
    hdfs = read(shared_data("hdfs-log-keys") / "hdfs_train.txt.gz", kind="cases")
    assert len(hdfs) == 4_855
    beauty = read(shared_data("amazon-beauty-bert4rec") / "beauty.txt.gz", kind="events")
    assert beauty.total == 353_962
    names = read(shared_data("names-makemore"), lines=True)
    assert len(names) == 32_033
    code = read(shared_data("code-completion-unixcoder"))
    assert (code.kind.name, len(code)) == ("text", 6_819)


def test_the_standard_library() -> None:
    folder = Path(sysconfig.get_path("stdlib")) / "json"
    data = read(folder)
    assert data.kind.name == "code" and len(data) >= 4


def test_the_contract_on_real_files(shared_data) -> None:
    logs = shared_data("process-logs-next-element")
    check_kind(KINDS["text"], [shared_data("tiny-shakespeare") / "input.txt"], mutations=8)
    check_kind(KINDS["dna"], [shared_data("phage-genomes") / "lambda.fa.gz"], mutations=8)
    check_kind(KINDS["protein"], [shared_data("protein-families") / "globins45.fa"], mutations=8)
    check_kind(KINDS["events"], [logs / "sepsis.csv.gz"], mutations=8)
    check_kind(KINDS["cases"], [logs / "sepsis.txt.gz"], mutations=8)


SETS = {  # what a folder is taken for
    "text": "amazon-scientific-text banking77 clinc150 code-completion-unixcoder "
            "continual-topics-olora csqa-mmlu-set-prompts dailydialog-valtest dialogsum-dev "
            "drop-successive-prompting e2e-nlg enwiki-xml-sample fewrel followrag-sample gsm8k "
            "gutenberg-novels humaneval ifeval jaspar-core-2024 jfleg "
            "listops-spinn movie-reviews multi30k-en-de names-makemore ner-gum ner-wnut17 "
            "nottingham-abc omniglot-small1 tiny-shakespeare udhr-multilingual "
            "us-addresses-by-year wikitext-2-valtest",
    "molecule": "chembl-chem-xlstm esol uspto-50k-valtest zinc250k-valtest",
    "code": "code-java-csharp",
    "dna": "ctcf-pu1-peaks ecoli-536 ecoli-k12 gue-dna phage-genomes promoters-cnnprom rebase-enzymes splice-uci "
           "tfbind8",
    "protein": "aav-capsid gb1-flip prokka-proteins protein-families protein-secondary-structure-flip",
    "events": "amazon-beauty-bert4rec movielens-latest-small-2016 process-logs-next-element process-logs-timed "
              "process-logs-xes tpp-amazon-devtest tpp-mathoverflow tpp-taobao tpp-taxi",
    "cases": "amazon-beauty-s3rec hdfs-log-keys lastfm-listening-rmtpp tpp-ali tpp-book-order",
    "music": "jsb-chorales pop909-midi",
    "graph": "graphs-tu qm9-graphs-sample",
    "sound": "fsdd-spoken-digits librispeech-sample",
    "picture": "cifar10-sample mnist-t10k",
    "series": "ecg-mitdb-snippet etth1 japanese-vowels tsplib-small",
}
LARGE = {"cifar10-sample", "movie-reviews", "omniglot-small1"}  # archives of thousands of files


@pytest.mark.parametrize("name, kind", [
    pytest.param(name, kind, marks=pytest.mark.slow if name in LARGE else ())
    for kind, names in SETS.items() for name in names.split()])
def test_every_data_set_is_read_as_its_kind(shared_data, name: str, kind: str) -> None:
    files, named = _find_files([shared_data(name)])
    assert _choose_kind(files, named, None, Problems())[0].name == kind


@pytest.mark.parametrize("name, message", [("asap-piano-performances/pieces.csv", "columns: composer, title, file")])
def test_tables_without_sequences_name_their_columns(shared_data, name: str, message: str) -> None:
    folder, _, file = name.partition("/")
    with pytest.raises(SegueError, match=message):
        read(shared_data(folder) / file)


def test_sets_in_layouts_of_their_own(shared_data) -> None:
    pairs = read(shared_data("amazon-beauty-bert4rec"))
    assert (len(pairs), pairs.total) == (40_226, 353_962)
    beauty = read(shared_data("amazon-beauty-s3rec") / "Beauty.txt.gz")
    assert (len(beauty), beauty.total, beauty.name(0)) == (22_363, 198_502, "1")
    log = read(shared_data("process-logs-xes") / "roadtraffic100traces.xes.gz")
    assert (len(log), log.vocabulary["Create Fine"]) == (100, 100) and "time" in log.channels
