"""The parts of `small4 check`, each of which returns rows of its table.

`rows` the table; `files` what headers and configuration say; `numbers` every tensor, by the
limits of `weights` and against a manifest;
`texts` tokenizer and chat template; `read_back` another layout and back; `running` the model: speed, softmax scale;
`answers` prompts, of which `questions` holds those for the real model.
"""
