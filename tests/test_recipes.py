"""Recipes from strangers: whatever a file or flag holds, it is a recipe or one line that says what is wrong."""

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fuzzing import fuzz
from quietstar import QuietStarError
from quietstar.training import plain_yaml
from quietstar.training import recipe as recipes

LAUGHS = "model: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"k{n}: &{chr(97 + n)} [{', '.join(['*' + chr(96 + n)] * 10)}]\n" for n in range(1, 12)
)


def told(text, tmp_path, overrides=()) -> str:
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    begun = time.perf_counter()
    with pytest.raises(QuietStarError) as error:
        recipes.load(str(path), overrides)
    assert time.perf_counter() - begun < 2
    assert "\n" not in str(error.value) and len(str(error.value)) < 2500
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "is not valid YAML: it holds more than 10000 values"),
        ("a: &x [*x]", r"the alias \*x is inside the node it refers to \(line 1, column 8\)"),
        ("[" * 5000, "more than 20 maps and lists in one another"),
        ("seed: 1\nmodel: a\nseed: 2", r"the key 'seed' is given twice \(line 3, column 1\)"),
        ("seed: !!python/object/apply:os.system [ls]", r"tags are not allowed .* \(line 1, column 7\)"),
        ("seed: !!bool x", "tags are not allowed"),
        ("seed: !!timestamp x", "tags are not allowed"),
        ("seed: 2020-13-45", "seed must be a whole number, got '2020-13-45'"),
        ("seed: " + "9" * 5000, "is not valid YAML: .*digits"),
        ("seed: " + "9" * 400, "seed must be .*, got 9999"),
        ("seed: -1", "seed must be at least 0, got -1"),
        ("seed: 1.0", "seed must be a whole number, got 1.0"),
        ("seed: 4294967296", "seed must be below 4294967296, got"),
        ("{[1]: 2}", "a key must be a single value"),
        ("1: 2", "keys should be strings"),
        ("<<: {seed: 1}", "unknown recipe key '<<'"),
        ("# " + "x" * 300_000, "it is larger than 200000 bytes"),
        ("model: über".encode("utf-16"), "byte 0 is not UTF-8"),
        (b"model: \xff", "byte 7 is not UTF-8"),
        ("model: \0", "is not valid YAML"),
        ('model: "\\0"', "model must not hold control characters"),
        ('model: "\\ud800"', "model must not hold control characters or broken Unicode"),
        ("just a text", "should hold keys and values"),
        ("--- {}\n--- {}", "is not valid YAML: expected a single document"),
        ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate must be a finite number, got nan"),
        ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate must be a finite number, got inf"),
        ("optimizer: {learning_rate: -1e-3}", "optimizer.learning_rate must be above 0, got -0.001"),
        ("optimizer: {learning_rate: '1e-3'}", "optimizer.learning_rate must be a number, got '1e-3'"),
        ("optimizer: {schedule: warp}", "optimizer.schedule must be linear, cosine, .*; got 'warp'"),
        ("optimizer: {schedule: [linear]}", "optimizer.schedule must be linear"),
        ("optimizer: {warmup: -1}", "optimizer.warmup must be at least 0, got -1"),
        ("optimizer: {beta1: 1}", "optimizer.beta1 must be below 1, got 1"),
        ("optimizer:", "optimizer is a section with keys of its own, got None"),
        ("watch: {keep: 0}", "watch.keep must be at least 1, got 0"),
        ("watch: {log_every: 0}", "watch.log_every must be at least 1, got 0"),
        ("watch: {controls: [own, mine]}", "watch.*mine"),
        ("watch: {report_to: 3}", "watch.report_to must be a list of texts, got 3"),
        ("data: {train: [1, 2]}", r"data.train.0 must be a text, got 1 \(and 1 more\)"),
        ("data: {only: {license: {a: b}}}", "data.only.license must be a list of texts"),
        ("data: {length: 1e3}", "data.length must be a whole number, got 1000.0"),
        ("thinking: {thoughts: 'yes'}", "thinking.thoughts must be true or false, got 'yes'"),
        ("thinking: {temperature: 0}", "thinking.temperature must be above 0, got 0"),
        ("lookahead_schedule: {0: 0}", "lookahead_schedule.0 must be at least 1, got 0"),
        ("lookahead_schedule: {-1: 2}", "each key of lookahead_schedule must be at least 0, got -1"),
        ("weights: {targets: []}", "weights.targets must name at least one layer"),
        ("precision: fp16", "precision must be bf16 or fp32; got 'fp16'"),
        ("optimizer: {step: 3}", "unknown recipe key 'optimizer.step'; did you mean 'optimizer.steps'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_key_value_and_what_is_allowed(text, says, tmp_path):
    import re

    line = told(text, tmp_path)
    assert re.search(says, line), line


def test_a_few_aliases_are_fine(tmp_path):
    (tmp_path / "r.yaml").write_text("\ufeffdata: {train: &files [a.txt, b.txt], heldout: *files}\nseed: 3")
    found = recipes.load(str(tmp_path / "r.yaml"))
    assert (found.data.heldout, found.seed) == (("a.txt", "b.txt"), 3)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([("data", "3"), ("data.train", "x")], "--data.train: data has the value 3, and no keys below it"),
        ([("", "3")], "unknown recipe key ''"),
        ([("data.", "3")], "unknown recipe key 'data.'"),
        ([("data.train.x", "3")], "data.train must be a list of texts|--data.train.x: data.train has the value"),
        ([("optimizer.steps", "[")], r"--optimizer.steps: '\[' is not a value"),
        ([("optimizer.steps", "!!int 3")], "--optimizer.steps: .* is not a value: tags are not allowed"),
    ],
)
def test_wrong_flags_are_told(flags, says):
    with pytest.raises(QuietStarError, match=says):
        recipes.load("smoke", flags)


@pytest.mark.parametrize(
    "source", ["", ".", "/", "a\0b", "x" * 5000, "no/such.yaml", "~nobody/x.yaml", "\ud800", "\ud800.yaml"]
)
def test_what_is_no_recipe_is_one_line(source, tmp_path):
    with pytest.raises(QuietStarError) as error:
        recipes.load(source)
    assert "\n" not in str(error.value)


def test_the_schema_names_every_key_and_its_range():
    schema = TypeAdapter(recipes.Recipe).json_schema()
    assert schema["$defs"]["OptimizerConfig"]["properties"]["steps"] == {
        "default": 100, "maximum": 2**53, "minimum": 1, "title": "Steps", "type": "integer"}  # fmt: skip
    assert schema["$defs"]["WeightsConfig"]["properties"]["train"]["enum"] == ["full", "lora", "head"]
    json.dumps(schema)


def test_built_in_python_a_wrong_value_is_the_same_line():
    with pytest.raises(QuietStarError, match="steps must be at least 1, got 0"):
        recipes.OptimizerConfig(steps=0)
    with pytest.raises(QuietStarError, match="unknown key 'step'; did you mean 'steps'"):
        recipes.OptimizerConfig(step=3)


# -- generated ------------------------------------------------------------------------------------------------------------


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 300), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.dates(), st.sampled_from([10**400, -(10**30), 2**63, 1e308, float("nan"), "full", "bf16", "all", "1e-6", "\ud800"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers(-2, 60)), inner, max_size=3),
    ),
    max_leaves=6,
)
KEYS = st.one_of(
    st.sampled_from([k for key in recipes.key_names() for k in (key, key.split(".")[0])]), st.text(max_size=6)
)


@st.composite
def mappings(draw) -> dict:
    """Recipes of which some keys hold what they should not."""
    raw: dict = {}
    for key in draw(st.lists(KEYS, min_size=1, max_size=4)):
        *sections, last = key.split(".")
        where = raw
        for section in sections:
            inner = where.setdefault(section, {})
            where = inner if isinstance(inner, dict) else where
        where[last] = draw(VALUES)
    return raw


def is_recipe_or_line(make) -> bool:
    try:
        found = make()
    except QuietStarError as error:
        assert "\n" not in str(error) and len(str(error)) < 2500
        return False
    assert recipes.from_mapping(plain_yaml.read(found.to_yaml()), "again") == found
    return True


@fuzz(150)
@given(mappings())
def test_any_mapping_is_a_recipe_that_prints_itself_or_a_line(raw):
    is_recipe_or_line(lambda: recipes.from_mapping(raw, "here"))


@fuzz(100)
@given(st.one_of(
    st.binary(max_size=60),
    mappings().map(lambda raw: yaml.dump(raw, allow_unicode=True).encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(["a", ": ", "- ", "[", "]", "{", "}", "*a", "&a ", "!!int ", "!x ", "\n", "  ", "'", '"', "|", ">", "#",
                              "? ", "%", "@", "`", "<<", "=", "~", "0x", "1_0", "1:2", ".inf", "seed", "data", "\t", "\ufeff", "\x85"]),
             max_size=14).map(lambda parts: "".join(parts).encode()),
    st.builds(lambda text, n, raw: text[: n % (len(text) + 1)] + raw + text[n % (len(text) + 1):],
              st.sampled_from([recipes.preset(name).to_yaml().encode() for name in recipes.PRESETS]), st.integers(0, 4000),
              st.binary(max_size=4)),
))  # fmt: skip
def test_any_file_is_a_recipe_or_a_line(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(raw)
    begun = time.perf_counter()
    is_recipe_or_line(lambda: recipes.load(str(path)))
    assert time.perf_counter() - begun < 5


@fuzz(80)
@given(st.lists(st.tuples(KEYS, st.one_of(st.text(max_size=12), VALUES.map(repr))), min_size=1, max_size=3))
def test_any_flags_are_a_recipe_or_a_line(flags):
    is_recipe_or_line(lambda: recipes.load("smoke", flags))
