"""CSV as people write it: whatever the dialect, each row is read as it was written, or rejected with its text."""

import csv
import io
import re

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from recall_lib.log import csv_rows, dialect
from recall_lib.process.errors import DataRefused, NoInput
from tests.log.reading import HEADER, NOON, fates, kept, read_entries, read_log, rejected


def log(tmp_path, text, name="clicks.csv", **settings):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(tmp_path, clicks=name, **settings)


@pytest.mark.parametrize(
    "head",
    [
        "user_id,article_id,expo_time,click,tag,tag",
        "user_id,article_id,expo_time,click,City,city",
        "user_id,article_id,expo_time,click,_source,_raw",
        "user_id,article_id,expo_time,click,_fate,_corrupt_record",
        "user_id,article_id,expo_time,click,a`b,a.b",
        "user_id,article_id,expo_time,click,,",
        '\ufeffuser_id,article_id,expo_time,click,"quoted, name",ü',
    ],
)
def test_columns_that_nobody_uses_have_any_name(tmp_path, head):
    assert kept(log(tmp_path, f"{head}\nu1,a,{NOON},1,x,y\n")) == [("u1", "a")]


def test_an_index_column_and_trailing_separators(tmp_path):
    frame = pd.DataFrame({"user_id": ["u1", "u2"], "article_id": ["a", "b"], "expo_time": NOON, "click": 1})
    assert kept(log(tmp_path, frame.to_csv())) == [("u1", "a"), ("u2", "b")]
    assert kept(log(tmp_path, f"{HEADER},\nu1,a,{NOON},1,\n")) == [("u1", "a")]
    assert kept(log(tmp_path, f"{HEADER}\nu1,a,{NOON},1,\nu2,b,{NOON},1,\nu3,c,{NOON},1\n")) == [
        ("u1", "a"),
        ("u2", "b"),
        ("u3", "c"),
    ]
    assert kept(log(tmp_path, f"{HEADER}\nu1,a,{NOON},1\nu2,b,{NOON},1\nu3,c,{NOON},1,\n")) == [
        ("u1", "a"),
        ("u2", "b"),
        ("u3", "c"),
    ]


def test_a_column_that_is_used_and_stands_twice_is_named(tmp_path):
    with pytest.raises(DataRefused, match=r"clicks\.csv has 2 columns 'user_id'"):
        log(tmp_path, f"{HEADER},user_id\nu1,a,{NOON},1,x\n")


def test_quotes(tmp_path):
    text = f'{HEADER},title\nu1,a,{NOON},1,"Say ""hi"", world"\n"the ""big"" one",c,{NOON},1,x\nu4,d,{NOON},1,"two\nlines"\n'
    assert kept(log(tmp_path, text)) == [('the "big" one', "c"), ("u1", "a"), ("u4", "d")]
    spark = f'{HEADER},title\nu1,a,{NOON},1,"Say \\"hi\\", world"\n"the \\"big\\" one",c,{NOON},1,\\N\n'
    features = {"user": [{"name": "title"}]}
    (tmp_path / "clicks.csv").write_text(spark)
    assert kept(read_log(tmp_path, features, clicks="clicks.csv"), "user_id", "title") == [
        ('the "big" one', None), ("u1", 'Say "hi", world'),
    ]  # fmt: skip


def test_a_stray_quote_costs_its_own_line_alone(tmp_path):
    lines = [f"u{n},i,{NOON},1,x" for n in range(50)]
    lines[7], lines[20], lines[30] = f'"u7,i,{NOON},1,x', f'u20,i,{NOON},1,5" screen', f'u30,i,{NOON},1,"x'
    rows = log(tmp_path, "\n".join([f"{HEADER},title", *lines, ""]))
    assert fates(rows) == {"kept": 48, "malformed": 2}
    assert rejected(rows) == [("clicks.csv", "malformed", lines[7]), ("clicks.csv", "malformed", lines[30])]


def test_rejected_rows_keep_their_text(tmp_path):
    bad = [f'"u,1","i ""1""",{NOON}x,1,t', f"u2,i,{NOON}", f"u3,i,{NOON},1,t,more", f",i,{NOON},1,t", 'u,"a\nb",never,1,t']
    good = [f"u{n},i,{NOON},1,t" for n in range(9)]
    rows = log(tmp_path, "\r\n".join([f"{HEADER},title", *good, *bad, "", "  ", ""]))
    assert fates(rows) == {"kept": 9, "bad_time": 2, "malformed": 2, "no_user": 1, "blank": 2}
    assert {text for _, _, text in rejected(rows)} == set(bad)


def test_bytes_that_are_no_utf8(tmp_path):
    head, unused = f"{HEADER},agent".encode(), f"u1,a,{NOON},1,caf\xe9".encode("latin-1")
    valid = f"u2,b,{NOON},1,caf\ufffd".encode()
    used = f"u\xe9,c,{NOON},1,x".encode("latin-1")
    rows = log(tmp_path, b"\n".join([head, unused, valid, used, f"\ufffd,d,{NOON},1,x".encode(), b""]))
    assert kept(rows) == [("u1", "a"), ("u2", "b"), ("\ufffd", "d")]
    assert rejected(rows) == [("clicks.csv", "bad_utf8", f"u\\xe9,c,{NOON},1,x")]


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "utf-16", "utf-8-sig", "cp1251", "shift-jis"])
def test_encodings(tmp_path, encoding):
    name = {"gbk": "用户", "latin-1": "Jürgen", "cp1251": "Иван", "shift-jis": "表ソ"}.get(encoding, "用户 Jürgen Иван")
    text = f"{HEADER}\n{name},a,{NOON},1\n".encode(encoding)
    options = {} if encoding in ("utf-16", "utf-8-sig") else {"encoding": encoding}
    assert kept(log(tmp_path, text, options=options)) == [(name, "a")]
    if encoding == "gbk":
        rows = log(tmp_path, text + b"\xff\xff,b,1709294400,1\n", options=options)
        assert fates(rows) == {"kept": 1, "bad_utf8": 1}


@pytest.mark.parametrize("sep", [",", ";", "\t", "|", "::", "||", "¦"])
def test_separators(tmp_path, sep):
    text = f"{HEADER},tags\nu1,a,{NOON},1,x|y\nu2,b,{NOON},1,z\n".replace("|", "_" if sep in ("|", "||") else "|").replace(
        ",", sep
    )
    told = {"options": {"sep": sep}} if sep in ("||", "¦") else {}
    assert kept(log(tmp_path, text, **told)) == [("u1", "a"), ("u2", "b")]
    without = text.split("\n", 1)[1]
    names = ["user_id", "article_id", "expo_time", "click", "tags"]
    assert kept(log(tmp_path, without, header=names, **told)) == [("u1", "a"), ("u2", "b")]
    with pytest.raises(DataRefused, match="no column"):
        log(tmp_path, without, **told)


def test_tables_without_a_header(tmp_path):
    (tmp_path / "items.dat").write_text("1::Toy Story (1995)::Animation|Comedy\n2::Heat::Action\n")
    features = {"item": [{"name": "genres", "multi": True, "separator": "|"}]}
    columns = {"item_id": "movie", "header": ["movie", "title", "genres"]}
    rows = read_entries(tmp_path, "items.dat", features, file_format="csv", item_columns=columns)
    assert kept(rows, "item_id", "genres") == [("1", ["Animation", "Comedy"]), ("2", ["Action"])]


def test_options_are_heard(tmp_path):
    text = f"# made by hand\n{HEADER}\nu1,a,{NOON},1\n#u2,b,{NOON},1\n'u,3',c,{NOON},1\nnobody,d,{NOON},1\n"
    rows = log(tmp_path, text, options={"comment": "#", "quote": "'", "nullValue": "nobody"})
    assert kept(rows) == [("u,3", "c"), ("u1", "a")]
    assert fates(rows) == {"kept": 2, "blank": 1, "no_user": 1}
    broken = f'{HEADER}\nu1,"a\nb",{NOON},1\n'
    assert kept(log(tmp_path, broken, options={"multiLine": "true"})) == [("u1", "a\nb")]
    assert fates(log(tmp_path, broken, options={"multiLine": "false"})) == {"malformed": 2}
    escaped = f'{HEADER}\n"u\\"1",\\N,{NOON},1\n"u\\\\2",b,{NOON},1\n'
    rows = log(tmp_path, escaped, options={"escape": "\\"})
    assert kept(rows) == [("u\\2", "b")]
    assert fates(rows) == {"kept": 1, "no_item": 1}, r"\N is no value, and not the item N"


def test_options_of_other_formats_are_refused(tmp_path):
    with pytest.raises(DataRefused, match=r"\['mergeschema'\] cannot be used for csv"):
        log(tmp_path, f"{HEADER}\nu1,a,{NOON},1\n", options={"mergeSchema": "true"})


def test_columns_that_files_gain_or_lose(tmp_path):
    (tmp_path / "clicks").mkdir()
    (tmp_path / "clicks" / "1.csv").write_text(f"{HEADER}\nu1,a,{NOON},1\n")
    (tmp_path / "clicks" / "2.csv").write_text(f"city,click,expo_time,article_id,user_id\nx,1,{NOON},b,u2\n")
    (tmp_path / "clicks" / "3.csv").write_text("")
    features = {"user": [{"name": "city"}]}
    assert kept(read_log(tmp_path, features), "user_id", "item_id", "city") == [("u1", "a", None), ("u2", "b", "x")]
    (tmp_path / "clicks" / "4.csv").write_text(f"account,article_id,expo_time,click\nu1,a,{NOON},1\n")
    with pytest.raises(DataRefused, match=r"4\.csv has no column 'user_id'"):
        read_log(tmp_path)


def test_empty_files(tmp_path):
    with pytest.raises(NoInput, match="not even a header"):
        log(tmp_path, "")
    assert log(tmp_path, HEADER) == []
    assert fates(log(tmp_path, f"{HEADER}\n\n\n")) == {"blank": 2}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_file_in_pieces_is_the_whole_file(tmp_path, monkeypatch, end, quoted):
    from recall_lib.log import streams, tables

    user = '"u,{}"' if quoted else "u{}"
    lines = [f"{user.format(n)},i{n},{NOON + n},1" for n in range(500)]
    text = end.join([HEADER, *lines[:250], "", *lines[250:]])
    whole = log(tmp_path, text)
    assert fates(whole) == {"kept": 500, "blank": 1}
    for size in (1, 7, 33, 1000, 5000):
        monkeypatch.setattr(streams, "_CHUNK", 100)
        monkeypatch.setattr(tables, "_LEAST_PIECE", size)
        rows = log(tmp_path, text, tasks=100_000)
        assert kept(rows) == kept(whole)
        assert fates(rows) == fates(whole)


# Any letters, and more often those that mean something to a CSV reader.
VALUE = st.text(
    st.one_of(st.sampled_from(',;\t|"\\\n\r ab#'), st.characters(codec="utf-8", exclude_characters="\0")), max_size=9
)
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_back(data, way, wanted, size):
    chunks = [data[at : at + size] for at in range(way.skip, len(data), size)]
    batches = list(csv_rows.read(chunks, way, wanted))
    rows = [row for b in batches for row in zip(*(b.columns[name].to_pylist() for name in wanted), strict=True)]
    return rows, [other for b in batches for other in b.others]


@RELAXED
@given(
    rows=st.lists(st.tuples(VALUE, VALUE, VALUE), min_size=1, max_size=12),
    sep=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n"]),
    size=st.sampled_from([1 << 20, 50]),
)
def test_what_pythons_csv_module_writes_is_read(rows, sep, end, size):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=sep, lineterminator=end)
    writer.writerow(["first", "second", "third"])
    writer.writerows(rows)
    data = out.getvalue().encode()
    assume(end == "\r\n" or b"\r" not in data)  # else Python does not quote it
    way = dialect.detect(data, {"sep": sep, "escape": '"'}, None)
    found, others = read_back(data, way, ["third", "first"], size)
    assert found == [(row[2].encode(), row[0].encode()) for row in rows]
    assert others == []


@RELAXED
@given(st.lists(st.tuples(VALUE, st.integers(0, 9), VALUE), min_size=1, max_size=12), st.booleans())
def test_what_pandas_writes_is_read(rows, index):
    frame = pd.DataFrame(rows, columns=["a", "n", "b"])
    data = frame.to_csv(index=index).encode()
    assume(b"\r" not in data)
    found, others = read_back(data, dialect.detect(data, {"escape": '"'}, None), ["b", "a"], 1 << 20)
    assert found == [(row[2].encode(), row[0].encode()) for row in rows]
    assert others == []


@RELAXED
@given(st.binary(max_size=300), st.sampled_from([1 << 20, 20]))
def test_no_line_of_any_bytes_is_lost(data, size):
    """Rows, blank lines and malformed lines are together all the text that there is."""
    way = dialect.detect(b"a,b\n", {"sep": ","}, None)
    batches = list(csv_rows.read([data[at : at + size] for at in range(0, len(data), size)], way, ["a"]))
    texts = [text for b in batches for text in [*b.texts(range(b.rows)), *(other for _, other in b.others)]]
    line_end = re.compile(rb"\r\n|\n|\r")
    read = sum(1 + len(line_end.findall(text.encode())) for text in texts)
    assert read == len(line_end.findall(data)) + (data[-1:] not in (b"", b"\n", b"\r"))
