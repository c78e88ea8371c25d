"""The settings of a run.

| file | contents |
|---|---|
| `config` | `TrainingConfig`: the settings with their meanings, defaults and limits |
| `presets` | settings of model and training that belong together |
| `options` | command-line options, derived from the fields |
| `choose` | which settings a run has: from its options, its preset or its checkpoint |
| `config_file` | the settings as a TOML file: --config, and the config.toml of each run |
"""
