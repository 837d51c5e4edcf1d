import numpy as np
import pytest
from seer import Seer
from seer import write_root

from align_keras.evaluation.words import measure_words
from align_keras.evaluation.words import read_simlex


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def test_words(root):
    path = root / "simlex999" / "SimLex-999.txt"
    result = measure_words(Seer().embedder(), path, False, 50)
    assert result["pairs"]["nouns"] == 2 and result["pairs"]["hard"] == 2
    assert result["hard"] == pytest.approx(1.0)
    assert np.isnan(result["adjectives"])  # One pair has no order.
    assert result["dataset"] == "simlex999"


HEADER = "word1\tword2\tPOS\tSimLex999\tconcQ\tSimAssoc333"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_quotation_marks_are_letters(tmp_path, encoding):
    pairs = [('"open', "door"), ('6" nail', '"'), ("a", 'b"')]
    rows = [f"{a}\t{b}\tN\t{n}\t1\t0" for n, (a, b) in enumerate(pairs)]
    path = tmp_path / "words.txt"
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding)
    found, judgements, members = read_simlex(path)
    assert found == pairs and judgements.tolist() == [0, 1, 2]
    assert members["nouns"].all() and not members["hard"].any()


@pytest.mark.parametrize(
    "text, words",
    [
        (HEADER, "no row"),
        (HEADER.replace("POS", "pos") + "\n" + "a\t" * 5, "lacks.*`POS`"),
        (f"{HEADER}\na\tb\tN\t1\t1\t0\na\tb\tN", "`SimLex999` in row 2"),
        (f"{HEADER}\na\tb\tN\t1\t1\t0\t7", "row 1: too many fields: 7"),
        (f"{HEADER}\na\tb\tN\tmuch\t1\t0", "SimLex999 'much' in row 1"),
        (f"{HEADER}\na\tb\tN\tnan\t1\t0", "SimLex999 'nan' in row 1"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, words):
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_simlex(path)
    assert str(path) in str(error.value)
