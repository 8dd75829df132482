"""Other libraries' models, services and pipelines with exits: Transformers, Sentence Transformers, Ray."""
