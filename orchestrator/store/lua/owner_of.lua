return holder(a.lock) or false
