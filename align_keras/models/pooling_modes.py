"""How the outputs of an encoder become one vector, by name."""

POOLINGS = ("auto", "average", "first", "last", "end_of_text", "none")

# Where a text encoder gathers what it has read, by the name of its class. Of
# one that looks ahead, the first token; of one that looks back only, the last;
# CLIP puts a token with the highest id of all at the end.
GATHERED = {
    "first": (
        "AlbertBackbone",
        "BertBackbone",
        "BertTextEncoder",
        "DebertaV3Backbone",
        "DistilBertBackbone",
        "ElectraBackbone",
        "FNetBackbone",
        "RobertaBackbone",
        "XLMRobertaBackbone",
    ),
    "last": (
        "BloomBackbone",
        "FalconBackbone",
        "GPT2Backbone",
        "GPTNeoXBackbone",
        "Gemma3Backbone",
        "GemmaBackbone",
        "Llama3Backbone",
        "LlamaBackbone",
        "MistralBackbone",
        "MixtralBackbone",
        "OPTBackbone",
        "PaliGemmaBackbone",
        "Phi3Backbone",
        "Qwen3Backbone",
        "QwenBackbone",
    ),
    "end_of_text": ("CLIPTextEncoder",),
}
