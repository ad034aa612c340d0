"""Stage 1: attribute captions for images of people, in Parquet. The only package that imports transformers.

attributes/    parser: caption text -> slots
prompts/       templates, patterns, the form of replies, cleaning
engines/       LLaVA in this process, or a server with the OpenAI chat API
store/         append-only shards of captions, shared by workers
stage/         the caption stage, which writes captions.parquet
corrections/   what people and other tools say instead of the model, and the stage that applies it
audit/         agreement of captions within identities, and flags on single captions
"""
