"""The names of the ways to pool the outputs of an encoder."""

POOLINGS = ("auto", "average", "first", "last", "end_of_text", "none")

# The token that represents a text, by the class name of the encoder: the first
# for bidirectional encoders, the last for causal ones. CLIP ends a text with
# the token that has the highest id.
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
