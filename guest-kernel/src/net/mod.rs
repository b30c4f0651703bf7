//! Network (helper "gnet").
