"""Which command makes which file of `results/`. Every figure of the card is made by one of these, from the repository
root.
"""

MEASURES: dict[str, str] = {
    "demo_eval": "python -m model_card.evals.demo_checkpoint --threads 1",
    "paraphrases": "python -m model_card.evals.paraphrases",
    "lm_eval": "python -m model_card.evals.lm_harness",
    "host_suites": "python -m model_card.evals.host_suites",
    "usage": "python -m model_card.evals.usage",
    "decode": "python -m model_card.bench.decode --threads 2 --budget 25 --out model_card/results/decode.json",
    "experts": "python -m model_card.bench.experts --threads 2 --runs 15 --budget 60 "
    "--out model_card/results/experts.json",
    "predecessor": "python -m model_card.bench.predecessor --threads 2 --budget 20 "
    "--out model_card/results/predecessor.json",
    "long_prompt": "python -m model_card.bench.long_prompt --threads 2 --out model_card/results/long_prompt.json",
    "drafts": "python -m model_card.bench.drafts --rows 24 --out model_card/results/drafts.json",
    "cache": "python -m model_card.bench.cache --out model_card/results/cache.json",
    "vision": "python -m model_card.bench.vision --threads 2 --runs 1 --budget 15 --out model_card/results/vision.json",
    "load": "python -m model_card.bench.load --threads 2 --budget 25 --out model_card/results/load.json",
    "train_step": "python -m model_card.bench.train_step --threads 2 --budget 25 "
    "--out model_card/results/train_step.json",
    "finetune": "python -m model_card.bench.finetune --rows 120 --steps 400 --out model_card/results/finetune.json",
    "lora_held": "python -m model_card.bench.lora_held --threads 1 --steps 300 --share 0.75 --rows 200 --at-once 2 "
    "--out model_card/results/lora_held.json",
    "lora_step": "python -m model_card.bench.lora_step --threads 2 --out model_card/results/lora_step.json",
    "loss_chunks": "python -m model_card.bench.loss_chunks --threads 2 --tokens 512 --chunks 64 256 "
    "--out model_card/results/loss_chunks.json",
    "balance": "python -m model_card.bench.balance --out model_card/results/balance.json",
    "preprocessing": "python -m model_card.bench.preprocessing --runs 7 --out model_card/results/preprocessing.json",
    "conversion": "python -m model_card.bench.conversion --layers 2 --runs 3 --out model_card/results/conversion.json",
    "weight_only": "python -m model_card.bench.weight_only --out model_card/results/weight_only.json",
    "stored_memory": "python -m model_card.bench.stored_memory --prompt 512 --cold "
    "--out model_card/results/stored_memory.json",
    "stored_products": "python -m model_card.bench.stored_products --threads 2 --tokens 1 32 64 128 256 512 "
    "--forms fp8 nvfp4 'int4 128' --runs 9 --budget 4 --copies 2 --out model_card/results/stored_products.json",
    "residency": "python -m model_card.bench.residency --threads 2 --layers 1 --experts 64 --tokens 64 "
    "--out model_card/results/residency.json",
    "routing": "python -m model_card.bench.routing --out model_card/results/routing.json",
    "grammar_validity": "python -m model_card.bench.grammar_validity --schemas 1000 "
    "--out model_card/results/grammar_validity.json",
    "grammar": "python -m model_card.bench.grammar SOURCE/maskbench/data --schemas 120 "
    "--out model_card/results/grammar.json",
    "fuzz": "python -m model_card.evals.fuzz",
    "server": "python -m model_card.bench.server --runs 3 --out model_card/results/server.json",
    "engines": "python -m model_card.bench.engines --vllm VENV/bin/vllm --llama VENV/bin/python "
    "SOURCE/vendor/llama.cpp --out model_card/results/engines.json",
}
