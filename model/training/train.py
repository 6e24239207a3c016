"""Trains a small ESM-2 on protein sequences and writes it as a Hugging Face folder.

    python train.py --fasta swissprot.fasta.gz --out swissprot_t8_14M --layers 8 --hidden 384 --heads 6 \
        --seconds 380 --seed 11

Needs PyTorch, NumPy and safetensors. Training stops by the clock, so the number of steps depends on the machine.

The model that ships was made by the command above from the UniProtKB/Swiss-Prot sequences of release 2014_01 (CC BY
4.0; Debian's metastudent-data has them as BLAST databases): 431,462 different ones of at least 30 residues, of which
4,999 were held out and 213,232 trained on; 711 M tokens on one NVIDIA H200; validation loss 2.5125 (perplexity 12.34).

The contact head is not trained: it is written as it is initialised.
"""

import argparse
import gzip
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

VOCABULARY = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>".split()
CLS, PAD, EOS, UNK, MASK = (VOCABULARY.index(token) for token in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))
FIRST_RESIDUE, END_COMMON, END_RESIDUES = 4, 24, 29  # ids [4, 24) are the 20 amino acids, [4, 29) also X B U Z O

MIN_RESIDUES = 30
HELD_OUT_BYTES = 3  # sequences whose MD5 starts with a byte below this, 3 in 256, are for validation

MASKED_SHARE = 0.15  # of the residues; 80 % of those become <mask>, 10 % another amino acid, 10 % stay
MEAN_MASK_TOKENS = 0.15 * 0.8

WARMUP_STEPS = 500
EVALUATE_EVERY = 500  # steps
VALIDATION_SEQUENCES, VALIDATION_BATCH, VALIDATION_LENGTH = 3000, 200, 512


# ---- Data ----------------------------------------------------------------------------------------------------------


def read_fasta(path: str) -> Iterator[str]:
    """The sequences of a FASTA file, which may be gzip-compressed."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        lines: list[str] = []
        for line in file:
            if not line.startswith(">"):
                lines.append(line.strip())
                continue
            if lines:
                yield "".join(lines)
            lines = []
        if lines:
            yield "".join(lines)


def token_table() -> np.ndarray:
    """[256] uint8: the token id of each upper-case letter; <unk> where there is none."""
    table = np.full(256, UNK, np.uint8)
    for index, token in enumerate(VOCABULARY):
        if len(token) == 1:
            table[ord(token)] = index
    table[ord("J")] = VOCABULARY.index("X")  # Leu or Ile
    return table


def split_sequences(sequences: Iterator[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of the training and of the held-out sequences, without duplicates.

    Ordering by MD5 shuffles alike on every machine. Only the second half of what is not held out is trained on: the
    first half is left for data that the model must not have seen.
    """
    table = token_table()
    by_digest = {}
    for sequence in sequences:
        ids = table[np.frombuffer(sequence.upper().encode(), np.uint8)]
        if len(ids) >= MIN_RESIDUES:
            by_digest[hashlib.md5(ids.tobytes()).digest()] = ids
    digests = sorted(by_digest)
    held_out = [by_digest[digest] for digest in digests if digest[0] < HELD_OUT_BYTES]
    others = [by_digest[digest] for digest in digests if digest[0] >= HELD_OUT_BYTES]
    return others[len(others) // 2 :], held_out


class Corpus(NamedTuple):
    """Sequences one behind the other on the device, without <cls> and <eos>."""

    ids: Tensor  # [residues] uint8
    starts: Tensor  # [sequences] int64
    lengths: Tensor  # [sequences] int64

    @staticmethod
    def pack(sequences: list[np.ndarray], device: str) -> "Corpus":
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        starts = np.cumsum(lengths) - lengths
        arrays = (np.concatenate(sequences), starts, lengths)
        return Corpus(*(torch.from_numpy(array).to(device) for array in arrays))


def make_batch(corpus: Corpus, chosen: Tensor, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids [batch, width] of the chosen sequences with <cls> and <eos>, and where they are padding.

    Of a sequence that is too long for `width` a random stretch is taken.
    """
    device = chosen.device
    length = corpus.lengths[chosen]
    kept = torch.clamp(length, max=width - 2)
    offset = (torch.rand(len(chosen), device=device, generator=rng) * (length - kept + 1)).long()
    position = torch.arange(width, device=device)[None, :] - 1
    source = corpus.starts[chosen][:, None] + offset[:, None] + position
    ids = corpus.ids[source.clamp(0, corpus.ids.numel() - 1)].long()
    ids = torch.where(position < kept[:, None], ids, PAD)
    ids[:, 0] = CLS
    ids.scatter_(1, (kept + 1)[:, None], EOS)
    return ids, ids == PAD


def corrupt(ids: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """BERT's corruption of the residues: the input, and the targets with -100 where nothing is to be predicted."""

    def uniform() -> Tensor:
        return torch.rand(ids.shape, device=ids.device, generator=rng)

    is_residue = (ids >= FIRST_RESIDUE) & (ids < END_RESIDUES)
    chosen = is_residue & (uniform() < MASKED_SHARE)
    targets = torch.where(chosen, ids, -100)
    kind = uniform()
    masked = torch.where(chosen & (kind < 0.8), MASK, ids)
    replacement = torch.randint(FIRST_RESIDUE, END_COMMON, ids.shape, device=ids.device, generator=rng)
    return torch.where(chosen & (kind >= 0.9), replacement, masked), targets


class Bucket(NamedTuple):
    """Training sequences of similar length, cut into batches of one shape."""

    width: int  # tokens
    batch: int  # sequences
    members: Tensor  # [sequences of the bucket] indices into the corpus


def make_buckets(lengths: Tensor) -> list[Bucket]:
    """Buckets of 65,536 to 131,072 tokens a batch; the last one also takes what is longer. Empty ones are left out."""
    buckets, shorter = [], 0
    for width, batch in ((128, 1024), (256, 512), (512, 256), (1024, 64)):
        fitting = lengths.clamp(max=1022)
        members = torch.nonzero((fitting <= width - 2) & (fitting > shorter)).flatten()
        shorter = width - 2
        if len(members):
            buckets.append(Bucket(width, batch, members))
    return buckets


# ---- Model ---------------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [batch, heads, tokens, head_dim], pairing the two halves of each head."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Layer(nn.Module):
    """One pre-LayerNorm transformer layer. The random numbers of a seed depend on the order of the members."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.feed_norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, attended)
        return x + self.down(F.gelu(self.up(self.feed_norm(x))))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, attended: Tensor) -> Tensor:
        def heads_first(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = (heads_first(linear(x)) for linear in (self.query, self.key, self.value))
        q, k = (rotate(projected, cos, sin).to(v.dtype) for projected in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attended)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class Esm2(nn.Module):
    """ESM-2 with its language-model head. The random numbers of a seed depend on the order of the members."""

    def __init__(self, layers: int, hidden: int, heads: int):
        super().__init__()
        self.head_dim = hidden // heads
        self.embedding = nn.Embedding(len(VOCABULARY), hidden, padding_idx=PAD)
        self.layers = nn.ModuleList(Layer(hidden, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(hidden)
        self.lm_dense = nn.Linear(hidden, hidden)
        self.lm_norm = nn.LayerNorm(hidden)
        self.lm_bias = nn.Parameter(torch.zeros(len(VOCABULARY)))
        self.initialise()

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of ids [batch, tokens]."""
        x = self.embed(ids, padding)
        cos, sin = self.rotary_table(ids.shape[1], ids.device)
        attended = (~padding)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, cos, sin, attended)
        x = self.lm_norm(F.gelu(self.lm_dense(self.final_norm(x))))
        return F.linear(x, self.embedding.weight) + self.lm_bias

    def embed(self, ids: Tensor, padding: Tensor) -> Tensor:
        """Embeddings with token dropout: <mask> is zero, and the others make up for it as on average in training."""
        is_mask = ids == MASK
        x = self.embedding(ids).masked_fill(is_mask[..., None], 0)
        mask_share = is_mask.sum(1) / (~padding).sum(1)
        x = x * ((1 - MEAN_MASK_TOKENS) / (1 - mask_share))[:, None, None]
        return x * (~padding)[..., None]

    def rotary_table(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines [tokens, head_dim], the angles of the first half repeated in the second."""
        exponents = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
        angles = torch.outer(torch.arange(tokens, device=device).float(), 1 / 10000**exponents)
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


# ---- Training ------------------------------------------------------------------------------------------------------


def masked_lm_loss(model: nn.Module, ids: Tensor, padding: Tensor, targets: Tensor) -> Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(ids, padding)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)


@torch.no_grad()
def validation_loss(model: Esm2, corpus: Corpus) -> float:
    """Mean loss over the masked residues of the first held-out sequences, masked alike at every call."""
    device = corpus.ids.device
    rng = torch.Generator(device)
    rng.manual_seed(1)
    model.eval()
    total = predicted = 0
    sequences = len(corpus.lengths)
    for first in range(0, min(VALIDATION_SEQUENCES, sequences), VALIDATION_BATCH):
        chosen = torch.arange(first, min(first + VALIDATION_BATCH, sequences), device=device)
        clean, padding = make_batch(corpus, chosen, VALIDATION_LENGTH, rng)
        ids, targets = corrupt(clean, rng)
        count = (targets != -100).sum().item()
        total += masked_lm_loss(model, ids, padding, targets).item() * count
        predicted += count
    model.train()
    return total / predicted


def make_optimizer(model: Esm2, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW that decays the matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=True)


class Trainer:
    """Trains by the clock: the learning rate falls linearly to zero at the end of the time given."""

    def __init__(self, model: Esm2, training: Corpus, held_out: Corpus, seed: int):
        self.model = model
        self.training = training
        self.held_out = held_out
        self.device = training.ids.device
        self.rng = torch.Generator(self.device)
        self.rng.manual_seed(seed)
        self.learning_rate = 3 * 4e-4 * math.sqrt(320 / model.embedding.embedding_dim)
        self.optimizer = make_optimizer(model, self.learning_rate)
        # Compiling is for the GPU; on a CPU it would take longer than a trial run.
        self.compiled = torch.compile(model, dynamic=False) if self.device.type == "cuda" else model
        self.buckets = make_buckets(training.lengths)
        self.step = 0
        self.tokens = 0

    def loss(self, chosen: Tensor, width: int) -> Tensor:
        clean, padding = make_batch(self.training, chosen, width, self.rng)
        ids, targets = corrupt(clean, self.rng)
        return masked_lm_loss(self.compiled, ids, padding, targets)

    def compile(self) -> None:
        """Runs each bucket's shape once, so that no compilation is on the clock."""
        for width, batch, members in self.buckets:
            if len(members) >= batch:
                chosen = members[:batch]
            else:
                chosen = members[torch.randint(len(members), (batch,), device=self.device)]
            self.loss(chosen, width).backward()
            self.optimizer.zero_grad(set_to_none=True)

    def train(self, seconds: float) -> None:
        batches = np.array([len(members) / batch for _, batch, members in self.buckets])
        start = time.time()
        while (elapsed := time.time() - start) <= seconds:
            self.set_learning_rate(elapsed / seconds)
            bucket = self.buckets[np.random.choice(len(self.buckets), p=batches / batches.sum())]
            loss = self.train_batch(bucket)
            if self.step % EVALUATE_EVERY == 0:
                self.report(f"{elapsed:.0f} s, training loss {loss.item():.3f}")

    def set_learning_rate(self, time_share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(1, self.step / WARMUP_STEPS) * (1 - time_share)

    def train_batch(self, bucket: Bucket) -> Tensor:
        width, batch, members = bucket
        chosen = members[torch.randint(len(members), (batch,), device=self.device, generator=self.rng)]
        loss = self.loss(chosen, width)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch * width
        return loss

    def report(self, what: str) -> float:
        loss = validation_loss(self.model, self.held_out)
        print(
            f"step {self.step}: {self.tokens / 1e6:.0f} M tokens, {what}, validation loss {loss:.4f}, "
            f"perplexity {math.exp(loss):.3f}",
            flush=True,
        )
        return loss


# ---- Writing -------------------------------------------------------------------------------------------------------

PUBLISHED_NAMES = {
    "embedding.weight": "esm.embeddings.word_embeddings.weight",
    "final_norm": "esm.encoder.emb_layer_norm_after",
    "lm_dense": "lm_head.dense",
    "lm_norm": "lm_head.layer_norm",
    "lm_bias": "lm_head.bias",
}
PUBLISHED_LAYER_NAMES = {
    "attention_norm": "attention.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "feed_norm": "LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def published_name(name: str) -> str:
    """A parameter's name in the published ESM-2 checkpoints: layers.0.up.bias -> esm.encoder.layer.0.intermediate..."""
    if name in PUBLISHED_NAMES:
        return PUBLISHED_NAMES[name]
    if name.startswith("layers."):
        _, index, module, parameter = name.split(".")
        return f"esm.encoder.layer.{index}.{PUBLISHED_LAYER_NAMES[module]}.{parameter}"
    module, parameter = name.split(".")
    return f"{PUBLISHED_NAMES[module]}.{parameter}"


def published_tensors(model: Esm2, attention_maps: int, seed: int) -> dict[str, Tensor]:
    """The model in fp16 under the published names.

    The LM head's last matrix is the embedding and is not stored twice; the rotary frequencies are not stored, since
    fp16 would round them. The contact head gets the initial values that Hugging Face transformers would give it.
    """
    tensors = {published_name(name): value for name, value in model.state_dict().items()}
    rng = torch.Generator().manual_seed(seed)
    tensors["esm.contact_head.regression.weight"] = 0.02 * torch.randn(1, attention_maps, generator=rng)
    tensors["esm.contact_head.regression.bias"] = torch.zeros(1)
    return {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in tensors.items()}


def make_config(layers: int, hidden: int, heads: int) -> dict:
    """config.json as Hugging Face transformers reads it (EsmConfig)."""
    return {
        "add_cross_attention": False,
        "architectures": ["EsmForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "bos_token_id": None,
        "dtype": "float16",
        "emb_layer_norm_before": False,
        "eos_token_id": EOS,
        "esmfold_config": None,
        "hidden_dropout_prob": 0.0,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 4 * hidden,
        "is_decoder": False,
        "is_folding_model": False,
        "layer_norm_eps": 1e-05,
        "mask_token_id": MASK,
        "max_position_embeddings": 1026,
        "model_type": "esm",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": PAD,
        "position_embedding_type": "rotary",
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "token_dropout": True,
        "use_cache": True,
        "vocab_list": None,
        "vocab_size": len(VOCABULARY),
    }


def part_of(out: Path) -> Path:
    """Where `out` is written before it is complete."""
    return out.with_name(out.name + ".part")


def write_folder(out: Path, tensors: dict[str, Tensor], config: dict, training: dict) -> None:
    """Writes everything under another name first, so that `out` is either whole or not there."""
    part = part_of(out)
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (part / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (part / "training.json").write_text(json.dumps(training))
    part.rename(out)


@torch.no_grad()
def check_with_transformers(out: Path, model: Esm2, corpus: Corpus) -> None:
    """Compares the logits of the folder as transformers computes them with the model's, in fp32 on the CPU."""
    from transformers import EsmForMaskedLM

    held_out = Corpus(*(tensor.cpu() for tensor in corpus))
    chosen = torch.arange(min(8, len(held_out.lengths)))
    ids, padding = make_batch(held_out, chosen, 128, torch.Generator().manual_seed(1))
    ours = model.cpu().half().float().eval()(ids, padding)
    theirs = EsmForMaskedLM.from_pretrained(out, dtype=torch.float32).eval()
    difference = ours - theirs(ids, attention_mask=(~padding).long()).logits
    largest = difference[~padding].abs().max().item()
    print(
        f"logits differ from transformers' by at most {largest:.2e}, themselves at most {ours.abs().max().item():.1f}"
    )
    if largest > 1e-3 * ours.abs().max().item():
        raise SystemExit(f"{out}: transformers computes other logits from this folder")


# ---- Command line --------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", required=True, help="protein sequences, plain or .gz")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=380.0, help="training time, compilation not counted")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--check-transformers", action="store_true", help="compare the result with Hugging Face transformers"
    )
    arguments = parser.parse_args()
    for folder in (arguments.out, part_of(arguments.out)):
        if folder.exists():
            parser.error(f"--out {arguments.out}: {folder} exists already")
    if arguments.hidden % (2 * arguments.heads):
        parser.error(f"--hidden {arguments.hidden}: must be a multiple of twice --heads {arguments.heads}")
    return arguments


def load_corpora(path: str, device: str) -> tuple[Corpus, Corpus]:
    training, held_out = split_sequences(read_fasta(path))
    if not training or not held_out:
        raise SystemExit(
            f"{path}: {len(training)} sequences to train on and {len(held_out)} held out; more are needed "
            f"(about {HELD_OUT_BYTES} in 256 of those with {MIN_RESIDUES} residues or more are held out)"
        )
    residues = sum(len(sequence) for sequence in training)
    print(f"{len(training)} training sequences, {residues} residues; {len(held_out)} held out", flush=True)
    return Corpus.pack(training, device), Corpus.pack(held_out, device)


def main() -> None:
    arguments = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(arguments.seed)
    np.random.seed(arguments.seed)

    training, held_out = load_corpora(arguments.fasta, device)
    model = Esm2(arguments.layers, arguments.hidden, arguments.heads).to(device)
    print(
        f"{sum(parameter.numel() for parameter in model.parameters())} parameters, contact head not counted", flush=True
    )

    trainer = Trainer(model, training, held_out, arguments.seed)
    trainer.compile()
    trainer.train(arguments.seconds)
    loss = trainer.report("done")

    tensors = published_tensors(model, arguments.layers * arguments.heads, arguments.seed)
    results = {
        "val_loss": loss,
        "val_perplexity": math.exp(loss),
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "train_sequences": len(training.lengths),
        "seconds": arguments.seconds,
    }
    write_folder(arguments.out, tensors, make_config(arguments.layers, arguments.hidden, arguments.heads), results)
    if arguments.check_transformers:
        check_with_transformers(arguments.out, model, held_out)


if __name__ == "__main__":
    main()
