"""Numbers of an existing Quiet-STaR implementation on tiny random models; see tests/golden/README.md.

Runs every case of the folder named by QUIETSTAR_GOLDEN (default: tests/golden).
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM

from quietstar import QuietStar
from quietstar.engine.mixing import mix
from quietstar.engine.model import Place, QuietStarConfig
from quietstar.training.objective import ObjectiveConfig, objective
from quietstar.training.step import StepConfig, training_loss

FOLDER = Path(os.environ.get("QUIETSTAR_GOLDEN", Path(__file__).parent / "golden"))
CASES = {
    path.parent.name: json.loads(path.read_text())["kind"]
    for path in sorted(FOLDER.glob("*/expected.json"))
    if "kind" in json.loads(path.read_text())
}


def test_there_are_cases():
    assert CASES, f"no golden case in {FOLDER}"


def training_model(case: Path, expected: dict) -> QuietStar:
    """The recorded weights in our model; marker ids are the last two rows of the vocabulary."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps")  # fmt: skip
    config = MistralConfig(
        **{name: expected[name] for name in names}, sliding_window=None, tie_word_embeddings=False,
        max_position_embeddings=4096, rope_parameters={"rope_type": "default", "rope_theta": expected["rope_theta"]},
    )  # fmt: skip
    weights = load_file(case / "model.safetensors")
    base = MistralForCausalLM(config)
    base.load_state_dict({k: v for k, v in weights.items() if k.startswith(("model.", "lm_head."))})
    model = QuietStar(
        QuietStarConfig(
            hidden_size=expected["hidden_size"], marker_ids=[expected["start_token_id"], expected["end_token_id"]]
        ),
        base,
    )
    model.head.layers.load_state_dict(
        {k.removeprefix("talk_head.0."): v for k, v in weights.items() if k.startswith("talk_head.0.")}
    )
    with torch.no_grad():
        model.markers.start.copy_(weights["start_embedding"][0])
        model.markers.end.copy_(weights["end_embedding"][0])
    return model


@pytest.mark.parametrize("name", [name for name, kind in CASES.items() if kind == "train"])
def test_training_step(name):
    case, expected = FOLDER / name, json.loads((FOLDER / name / "expected.json").read_text())
    model, batch = training_model(case, expected), load_file(case / "batch.safetensors")
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    samples, lookahead, n_ahead = expected["n_passes"], expected["n_ahead_talk"], expected["n_ahead"]
    thoughts = batch["thoughts"].view(len(ids), samples, ids.shape[1], -1).transpose(1, 2)
    assert thoughts.shape[-1] == n_ahead - 3
    base_hidden, row_hidden = model.think_ahead(ids, mask, thoughts, lookahead)
    constants = ObjectiveConfig(
        lookahead=lookahead, base_weight=expected["original_loss_weight"],
        policy_weight=expected["policy_loss_beta"], policy_temperature=expected["reinforce_temperature"],
    )  # fmt: skip
    losses = objective(
        base_hidden, row_hidden, thoughts, ids, mask, model.weight, model.unembed, model.config.marker_ids, constants
    )
    found = {
        "loss": losses.total, "loss_0": losses.base, "loss_final": losses.mixed[-1], "loss_talk": losses.mixed.mean(),
        "policy_loss": losses.policy, "policy_reward": losses.reward.mean(),
    } | {f"loss_{n_ahead - 1 + k}": losses.mixed[k] for k in range(lookahead)}  # fmt: skip
    for key, value in found.items():
        assert value.item() == pytest.approx(expected[key], rel=1e-5, abs=1e-7), key

    # the mixed logits of the last offset stand at the position of the thought
    last = ids.shape[1] - lookahead
    h = base_hidden[:, lookahead - 1 : lookahead - 1 + last, None].expand(-1, -1, samples, -1)
    g = row_hidden[:, :last, :, -1]
    logits = model.unembed((1 - (w := model.weight(h, g))[..., None]) * h + w[..., None] * g)
    recorded = batch["last_logits"].view(len(ids), samples, ids.shape[1], -1).transpose(1, 2)[:, :last]
    real = mask[:, lookahead - 1 : lookahead - 1 + last]
    torch.testing.assert_close(logits[real], recorded[real], rtol=1e-3, atol=1e-3)

    losses.total.backward()
    check_gradients(case, model)

    # the step that trains in chunks of rows, both ways of having its gradient
    for chunk_mb, recompute in ((1e-3, False), (0.5, False), (0.5, True)):
        model.zero_grad()
        config = StepConfig(objective=constants, thought_length=n_ahead - 3, samples=samples, chunk_mb=chunk_mb)
        total, report = training_loss(model, ids, mask, config, thoughts=thoughts, recompute=recompute)
        assert total.item() == pytest.approx(expected["loss"], rel=1e-5)
        assert report.base == pytest.approx(expected["loss_0"], rel=1e-5)
        assert report.mixed == pytest.approx(expected["loss_talk"], rel=1e-5)
        total.backward()
        check_gradients(case, model)


def check_gradients(case: Path, model: QuietStar) -> None:
    ours = {f"grad.{name}": p.grad for name, p in model.base.named_parameters()}
    ours |= {f"grad.talk_head.0.{name}": p.grad for name, p in model.head.layers.named_parameters()}
    for marker in ("start", "end"):  # row 1 is unused there
        gradient = getattr(model.markers, marker).grad
        ours[f"grad.{marker}_embedding"] = torch.stack([gradient, torch.zeros_like(gradient)])
    for key, wanted in load_file(case / "gradients.safetensors").items():
        error = (ours[key] - wanted).norm() / wanted.norm().clamp_min(1e-12)
        assert error < 1e-4, f"{key}: relative error {error:.1e}"


@pytest.mark.parametrize("name", [name for name, kind in CASES.items() if kind == "infer"])
def test_greedy_thinking(name):
    case, expected = FOLDER / name, json.loads((FOLDER / name / "expected.json").read_text())
    model, wanted = QuietStar.from_pretrained(case, dtype="float32"), load_file(case / "expected.safetensors")
    assert model.config.marker_ids == [expected["start_token_id"], expected["end_token_id"]]
    length, steps = expected["sampled_thought_tokens"], expected["steps"]
    _, trace = model.generate(wanted["prompt_ids"], thought_length=length, max_new_tokens=steps, stop_ids=[])
    assert trace.ids == wanted["output_ids"][0].tolist()
    assert len(trace.thoughts) == steps
    for k, thought in enumerate(trace.thoughts):
        assert thought.samples[0].ids == wanted[f"step{k}.thought_ids"][0, 1:-1].tolist()
        assert thought.weight == pytest.approx(wanted[f"step{k}.mixing_weight"].item(), rel=1e-3, abs=1e-4)
        for found, key in ((thought.base, "without_thought"), (thought.mixed, "with_thought"),
                           (thought.only, "with_only_thought")):  # fmt: skip
            assert found[0].id == wanted[f"step{k}.next_token_{key}"].item()
        # the recorded thought put in one position of the known text gives the recorded mixed logits
        prefix, hidden = model.read(wanted["output_ids"][:, : wanted["prompt_ids"].shape[1] + k])
        at = torch.tensor([hidden.shape[1] - 1])
        g = model.think(prefix, Place(torch.zeros_like(at), at, torch.zeros_like(at)), length=length,
                        tokens=wanted[f"step{k}.thought_ids"][:, 1:-1]).hidden  # fmt: skip
        h = hidden[:, -1]
        logits = model.logits(mix(h, g, model.weight(h, g)))
        recorded = wanted[f"step{k}.logits"][0]
        shown = logits.isfinite() & (recorded > -1e9)
        torch.testing.assert_close(logits[shown], recorded[shown], rtol=1e-3, atol=1e-3)
