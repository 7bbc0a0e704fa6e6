"""Indexes through the interfaces of others: tools of an assistant (MCP), a vector store of LangChain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.integrations.langchain import KexueVectorStore as KexueVectorStore
    from kexue.integrations.mcp import create_mcp_server as create_mcp_server

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "langchain": ("KexueVectorStore",),
        "mcp": ("create_mcp_server",),
    },
    needs={"langchain": "langchain_core", "mcp": "mcp"},
)
