"""Fine-tuning: tasks, labels, rows held out, classifiers that go on."""
