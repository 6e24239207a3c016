"""ESM-2 in PyTorch as its users run it: transformers' model on padded batches. What the scripts beside this one share."""

import gzip
import json
import pathlib
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT / "model/pretrained/swissprot_t8_14M"
SIZES = {  # layers, hidden, heads
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
    "15B": (48, 5120, 40),
}
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
PAD, CLS, EOS, UNK = 1, 0, 2, 3


def make_model(size, dtype, attention, device, head=True):
    """Random weights in an official size, or in that of a model's folder; with the LM head, or to the last hidden state."""
    import torch
    from transformers import EsmConfig, EsmForMaskedLM, EsmModel

    if size in SIZES:
        layers, hidden, heads = SIZES[size]
    else:
        folder = json.loads((pathlib.Path(size) / "config.json").read_text())
        layers, hidden, heads = (folder[k] for k in ["num_hidden_layers", "hidden_size", "num_attention_heads"])
    config = EsmConfig(
        vocab_size=33,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        position_embedding_type="rotary",
        token_dropout=True,
        mask_token_id=32,
        pad_token_id=PAD,
        max_position_embeddings=1026,
        attn_implementation=attention,
    )
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    model = EsmForMaskedLM(config) if head else EsmModel(config, add_pooling_layer=False)
    return model.to(device, getattr(torch, DTYPES[dtype])).eval()


def read_fasta(path):
    """[(id, sequence)] in the file's order."""
    records = []
    with gzip.open(path, "rt") if str(path).endswith(".gz") else open(path) as lines:
        for line in lines:
            if line.startswith(">"):
                records.append((line[1:].split()[0], []))
            else:
                records[-1][1].append(line.strip())
    return [(name, "".join(parts).upper()) for name, parts in records]


def token_ids(records, folder=DEFAULT_MODEL):
    """Of each record, <cls> and <eos> included. All ESM-2 models have one vocabulary."""
    vocabulary = {token: i for i, token in enumerate((pathlib.Path(folder) / "vocab.txt").read_text().split())}
    return [[CLS, *(vocabulary.get(residue, UNK) for residue in sequence), EOS] for _, sequence in records]


def batches(tokens, budget):
    """Lists of indices, the longest sequences first; a batch of n sequences counts as n times its longest."""
    result, current = [], []
    for i in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        if current and len(tokens[current[0]]) * (len(current) + 1) > budget:
            result.append(current)
            current = []
        current.append(i)
    return result + [current]


def mean_embeddings(model, tokens, budget, device):
    """(seconds, means [N, H] in the order of `tokens`): from token ids to means over the residues, in host memory."""
    import torch

    start, results = time.monotonic(), [None] * len(tokens)
    with torch.inference_mode():
        for members in batches(tokens, budget):
            longest = len(tokens[members[0]])
            ids = torch.full((len(members), longest), PAD)
            for row, i in enumerate(members):
                ids[row, : len(tokens[i])] = torch.tensor(tokens[i])
            ids = ids.to(device)
            mask = (ids != PAD).long()
            hidden = model(ids, attention_mask=mask).last_hidden_state.float()
            residues = ((ids != PAD) & (ids != CLS) & (ids != EOS)).unsqueeze(-1)
            sums = (hidden * residues).sum(1) / residues.sum(1)
            for row, i in enumerate(members):
                results[i] = sums[row]
        means = torch.stack(results).cpu()
    return time.monotonic() - start, means
