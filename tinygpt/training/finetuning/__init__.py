"""Fine-tuning on rows: `tinygpt finetune`.

| file | contents |
|---|---|
| `run` | a run: from the options to the trainer |
| `example_rows` | its rows: read, checked, divided into training and validation |
| `task_options`, `tasks`, `label_task` | what is learned from a row: a text, answers, a label |
| `data_facts`, `held_out` | data.json; the run's validation rows, read again |
"""
