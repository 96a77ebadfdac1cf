"""Properties of text for display: pieces join to the text, and split characters come whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar.text import TextStream, pieces, text_of, visible

ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def test_pieces_join_to_the_text(tokenizer):
    @settings(max_examples=200, deadline=None)
    @given(ODD)
    def check(text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert len(pieces(tokenizer, ids)) == len(ids)

    check()


def test_a_character_over_several_tokens_comes_whole_with_its_last_token(tokenizer):
    ids = tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert pieces(tokenizer, ids) == ["a", "", "", "", "🙂", "b"]


def test_a_character_begun_in_the_text_and_finished_in_the_thought(tokenizer):
    ids = tokenizer("é日x", add_special_tokens=False)["input_ids"]
    for cut in range(len(ids)):
        context, thought = ids[:cut], ids[cut:]
        said = pieces(tokenizer, context)
        if said and said[-1].endswith("\ufffd"):  # flushed by `pieces`: the text shows an unfinished character there
            said[-1] = said[-1].rstrip("\ufffd")
        assert "".join(said) + text_of(tokenizer, thought, context) == "é日x"


def test_an_unfinished_character_is_held_back_and_shown_at_the_end(tokenizer):
    ids = tokenizer("日", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in ids[:-1]] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_bytes_that_never_make_a_character_do_not_hold_text_back_for_ever(tokenizer):
    lone = tokenizer("日", add_special_tokens=False)["input_ids"][1]
    stream = TextStream(tokenizer)
    out = [stream.push(lone) for _ in range(30)]
    assert any(out)


def test_context_does_not_change_what_a_whole_token_says(tokenizer):
    @settings(max_examples=100, deadline=None)
    @given(ODD, st.text("abc de", min_size=1, max_size=8))
    def check(before, after):
        context = tokenizer(before, add_special_tokens=False)["input_ids"]
        ids = tokenizer(after, add_special_tokens=False)["input_ids"]
        assert text_of(tokenizer, ids, context) == after

    check()


def test_visible_is_one_line_without_control_characters():
    assert visible("a\nb\tc\x1b[31m\r") == "a⏎b⇥c\\x1b[31m␍"
    assert visible("\u202e\u2028") == "\\x202e\\x2028"
    assert visible("Bonjour\u00a0! \u3000👩\u200d👧") == "Bonjour\u00a0! \u3000👩\u200d👧"
