import sys, glob, json, zipfile, os
from gguf import GGUFReader
z='/tmp/smol'
w=glob.glob('/tmp/smol/*.whl')[0]
zf=zipfile.ZipFile(w)
n=[x for x in zf.namelist() if x.endswith('.gguf')]
print(n)
if not os.path.exists('/tmp/smol/'+n[0]): zf.extract(n[0],'/tmp/smol')
r=GGUFReader('/tmp/smol/'+n[0])
for k,f in r.fields.items():
    if 'tokenizer' in k or 'general' in k or 'vocab' in k:
        d=f.contents()
        print(k, (len(d), d[:20]) if isinstance(d,list) else d)
toks=r.fields['tokenizer.ggml.tokens'].contents(); merges=r.fields['tokenizer.ggml.merges'].contents(); types=r.fields['tokenizer.ggml.token_type'].contents()
from collections import Counter
print(Counter(types), [ (i,t) for i,t in enumerate(toks) if types[i]!=1])
os.makedirs('/tmp/smol/folder',exist_ok=True)
vocab={t:i for i,t in enumerate(toks)}
added=[{"id":i,"content":t,"single_word":False,"lstrip":False,"rstrip":False,"normalized":False,"special":True} for i,t in enumerate(toks) if types[i]!=1]
tj={"version":"1.0","truncation":None,"padding":None,"added_tokens":added,"normalizer":None,
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":True},{"type":"ByteLevel","add_prefix_space":False,"trim_offsets":True,"use_regex":True}]},
"post_processor":None,"decoder":{"type":"ByteLevel","add_prefix_space":True,"trim_offsets":True,"use_regex":True},
"model":{"type":"BPE","dropout":None,"unk_token":None,"continuing_subword_prefix":None,"end_of_word_suffix":None,"fuse_unk":False,"byte_fallback":False,"ignore_merges":False,"vocab":vocab,"merges":merges}}
json.dump(tj,open('/tmp/smol/folder/tokenizer.json','w'),ensure_ascii=False)
dec={str(a["id"]):{k:v for k,v in a.items() if k!="id"} for a in added}
json.dump({"add_prefix_space":False,"added_tokens_decoder":dec,"bos_token":"<|endoftext|>","eos_token":"<|endoftext|>","unk_token":"<|endoftext|>","tokenizer_class":"GPT2Tokenizer","clean_up_tokenization_spaces":False,"model_max_length":8192,"vocab_size":49152},open('/tmp/smol/folder/tokenizer_config.json','w'))
json.dump({"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":49152},open('/tmp/smol/folder/config.json','w'))
