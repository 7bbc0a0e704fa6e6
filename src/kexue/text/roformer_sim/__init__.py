"""RoFormer-Sim: one Transformer that turns sentences into vectors and writes sentences that mean the same.

Source: kexue.fm/archives/8454; SimBERT: kexue.fm/archives/7427.
"""
