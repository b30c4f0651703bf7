//! Files (helper "gfs").
